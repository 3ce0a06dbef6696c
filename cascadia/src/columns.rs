//! Text in columns, as wide as what they hold.

/// Which side of its column a cell keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Lays out `rows` below their titles; every row has one cell a title. No line ends in spaces.
#[must_use]
pub fn layout(titles: &[(&str, Side)], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = titles.iter().map(|(title, _)| title.chars().count()).collect();
    for row in rows {
        debug_assert_eq!(row.len(), titles.len(), "one cell a title");
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut out = String::new();
        for ((cell, &width), (_, side)) in cells.zip(&widths).zip(titles) {
            if !out.is_empty() {
                out.push_str("  ");
            }
            match side {
                Side::Left => out.push_str(&format!("{cell:<width$}")),
                Side::Right => out.push_str(&format!("{cell:>width$}")),
            }
        }
        text.push_str(out.trim_end());
        text.push('\n');
    };
    line(&mut titles.iter().map(|(title, _)| *title));
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["a".into(), "1".into()], vec!["longer".into(), "1000".into()]];
        let text = layout(&[("name", Side::Left), ("n", Side::Right)], &rows);
        assert_eq!(text, "name       n\na          1\nlonger  1000\n");
    }

    #[test]
    fn no_line_ends_in_spaces() {
        let rows = vec![vec!["a".into(), String::new()]];
        let text = layout(&[("name", Side::Left), ("what", Side::Left)], &rows);
        assert_eq!(text, "name  what\na\n");
    }
}

//! Stop strings in a stream of text.

/// Releases text as soon as it can no longer be the beginning of a stop string.
///
/// The first match is the one that ends first; of several that end together, the longest. That does not depend on how
/// the text is cut into deltas.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    longest: usize,
    held: String,
}

impl StopStrings {
    /// Empty strings never match.
    #[must_use]
    pub fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        Self { stops, longest, held: String::new() }
    }

    /// Takes more text and appends to `released` what is certain. On a match the released text ends just before the
    /// stop string, the rest is dropped, and the stop string is returned.
    pub fn push(&mut self, delta: &str, released: &mut String) -> Option<&str> {
        if self.stops.is_empty() {
            released.push_str(delta);
            return None;
        }
        self.held.push_str(delta);
        // (end, start, which): the order of the tuple is the order of preference.
        let found = |(which, stop): (usize, &String)| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, which))
        };
        if let Some((_, start, which)) = self.stops.iter().enumerate().filter_map(found).min() {
            released.push_str(&self.held[..start]);
            self.held.clear();
            return Some(&self.stops[which]);
        }
        let certain = self.certain();
        released.extend(self.held.drain(..certain));
        None
    }

    /// Ends the text: releases what was held back.
    pub fn flush(&mut self, released: &mut String) {
        released.push_str(&self.held);
        self.held.clear();
    }

    /// Length of the held text before the first place where a stop string may have begun.
    fn certain(&self) -> usize {
        let near = self.held.len().saturating_sub(self.longest);
        let begins = |&from: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[from..]));
        let boundaries = (near..self.held.len()).filter(|&at| self.held.is_char_boundary(at));
        boundaries.into_iter().find(begins).unwrap_or(self.held.len())
    }
}

//! Pages under random operations: nothing leaks, nobody writes what another reads, and what is found is what was written.

use cascadia_core::history::History;
use cascadia_core::ids::TokenId;
use cascadia_core::limits::PAGE_TOKENS;
use cascadia_core::pages::{PageTable, Pages};
use proptest::prelude::*;

/// A session with the tokens its pages hold, as a stepper keeps them.
struct Open {
    table: PageTable,
    salt: usize,
    ids: Vec<TokenId>,
}

#[derive(Clone, Debug)]
enum Op {
    Open {
        salt: usize,
    },
    /// Follow `script`, a stream of tokens that others follow too, for so many tokens.
    Grow {
        session: usize,
        script: u32,
        tokens: usize,
    },
    Truncate {
        session: usize,
        length: usize,
    },
    /// Lose everything, then find again what can be found.
    Reopen {
        session: usize,
        limit: usize,
    },
    Close {
        session: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0usize..2).prop_map(|salt| Op::Open { salt }),
        6 => (0usize..8, 0u32..2, 1usize..50).prop_map(|(session, script, tokens)| Op::Grow { session, script, tokens }),
        3 => (0usize..8, 0usize..100).prop_map(|(session, length)| Op::Truncate { session, length }),
        2 => (0usize..8, 0usize..100).prop_map(|(session, limit)| Op::Reopen { session, limit }),
        1 => (0usize..8).prop_map(|session| Op::Close { session }),
    ]
}

/// The pool, and beside it what would be in its memory: for each slot the salt and hash of all tokens up to it.
struct World {
    pages: Pages,
    slots: Vec<Option<(usize, u64)>>,
    open: Vec<Open>,
}

impl World {
    fn new(count: usize) -> Self {
        Self { pages: Pages::new(count, "model"), slots: vec![None; count * PAGE_TOKENS], open: Vec::new() }
    }

    fn apply(&mut self, op: &Op) {
        let count = self.open.len().max(1);
        match *op {
            Op::Open { salt } if self.open.len() < 8 => {
                let table = self.pages.open(["red", "blue"][salt]);
                self.open.push(Open { table, salt, ids: Vec::new() });
            }
            Op::Grow { session, script, tokens } if !self.open.is_empty() => self.grow(session % count, script, tokens),
            Op::Truncate { session, length } if !self.open.is_empty() => {
                let open = &mut self.open[session % count];
                let length = length.min(open.ids.len());
                let held = self.pages.truncate(&mut open.table, length);
                assert!(held == length || held == length / PAGE_TOKENS * PAGE_TOKENS);
                open.ids.truncate(held);
            }
            Op::Reopen { session, limit } if !self.open.is_empty() => {
                let open = &mut self.open[session % count];
                self.pages.release(&mut open.table);
                let held = self.pages.adopt(&mut open.table, &open.ids, 0, limit);
                assert!(held <= limit && held <= open.ids.len());
                open.ids.truncate(held);
            }
            Op::Close { session } if !self.open.is_empty() => {
                let mut open = self.open.swap_remove(session % count);
                self.pages.release(&mut open.table);
            }
            _ => {}
        }
    }

    fn grow(&mut self, session: usize, script: u32, tokens: usize) {
        let open = &mut self.open[session];
        let start = self.pages.truncate(&mut open.table, open.ids.len());
        open.ids.truncate(start);
        let ids: Vec<TokenId> =
            open.ids.iter().copied().chain((0..tokens as u32).map(|i| script * 100 + i / 5)).collect();
        let start = self.pages.adopt(&mut open.table, &ids, start, ids.len());
        let available = self.pages.available();
        let missing = ids.len().div_ceil(PAGE_TOKENS).saturating_sub(open.table.pages().len() + available);
        let extended = self.pages.extend(&mut open.table, ids.len());
        assert_eq!(extended.err().unwrap_or(0), missing);
        if missing > 0 {
            open.ids = ids[..start].to_vec();
            return;
        }
        assert!(self.pages.is_writable(&open.table, start));
        open.ids = ids;
        let history = History::from_ids(&open.ids);
        for position in start..open.ids.len() {
            let page = open.table.pages()[position / PAGE_TOKENS].index();
            self.slots[page * PAGE_TOKENS + position % PAGE_TOKENS] = Some((open.salt, history.tail_at(position + 1)));
        }
        self.pages.register(&mut open.table, &open.ids);
    }

    /// Every session reads what it, or another of its salt with the same tokens, wrote.
    fn check(&self) {
        self.pages.audit(self.open.iter().map(|open| &open.table)).unwrap();
        for open in &self.open {
            let history = History::from_ids(&open.ids);
            for position in 0..open.ids.len() {
                let page = open.table.pages()[position / PAGE_TOKENS].index();
                let slot = self.slots[page * PAGE_TOKENS + position % PAGE_TOKENS];
                assert_eq!(slot, Some((open.salt, history.tail_at(position + 1))), "position {position}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_leaks_and_nobody_overwrites(count in 1usize..24, ops in prop::collection::vec(op(), 1..80)) {
        let mut world = World::new(count);
        for op in &ops {
            world.apply(op);
            world.check();
        }
        while !world.open.is_empty() {
            world.apply(&Op::Close { session: 0 });
        }
        world.check();
        prop_assert_eq!(world.pages.used(), 0, "a page has an owner after the last session closed");
        prop_assert_eq!(world.pages.available(), count);
    }
}

fn filled(pages: &mut Pages, salt: &str, ids: &[TokenId]) -> PageTable {
    let mut table = pages.open(salt);
    pages.extend(&mut table, ids.len()).unwrap();
    pages.register(&mut table, ids);
    table
}

#[test]
fn released_pages_are_found_until_reused_and_the_oldest_release_is_reused_first() {
    let mut pages = Pages::new(4, "model");
    let (a, b) = ([1; 32], [2; 32]);
    let mut first = filled(&mut pages, "", &a);
    let mut second = filled(&mut pages, "", &b);
    pages.release(&mut first);
    pages.release(&mut second);
    assert_eq!((pages.used(), pages.available()), (0, 4));
    let mut third = filled(&mut pages, "", &[3; 16]);
    // The end of the first was reused; its beginning and all of the second are still there.
    assert_eq!(pages.adopt(&mut first, &a, 0, 32), 16);
    assert_eq!(pages.adopt(&mut second, &b, 0, 32), 32);
    assert_eq!(pages.used(), 4);
    for table in [&mut first, &mut second, &mut third] {
        pages.release(table);
    }
    assert_eq!(pages.used(), 0);
}

#[test]
fn only_equal_salts_meet() {
    let mut pages = Pages::new(4, "model");
    let _kept = filled(&mut pages, "red", &[1; 16]);
    let (mut red, mut blue) = (pages.open("red"), pages.open("blue"));
    assert_eq!(pages.adopt(&mut blue, &[1; 16], 0, 16), 0);
    assert_eq!(pages.adopt(&mut red, &[1; 16], 0, 15), 0, "not past the limit");
    assert_eq!(pages.adopt(&mut red, &[1; 16], 0, 16), 16);
    assert_eq!(pages.used(), 1);
}

#[test]
fn truncating_into_a_shared_page_gives_it_up() {
    let mut pages = Pages::new(4, "model");
    let mut first = filled(&mut pages, "", &[1; 32]);
    let mut second = pages.open("");
    assert_eq!(pages.adopt(&mut second, &[1; 32], 0, 32), 32);
    assert_eq!(pages.truncate(&mut second, 20), 16, "the other session reads page 1");
    assert_eq!(pages.truncate(&mut first, 20), 20, "nobody reads page 1 any more");
    assert!(pages.is_writable(&first, 20) && !pages.is_writable(&first, 15));
    let mut third = pages.open("");
    assert_eq!(pages.adopt(&mut third, &[1; 32], 0, 32), 16, "a page being written is not found");
}

//! Accounting of KV pages: who refers to which, and which can be found again by content.
//!
//! A page is *private* (one session, still written), *shared* (full, findable by content, referred to by any number of
//! sessions, never written), *released* (findable, no session refers to it; reused least recently used first) or free.
//! Only full pages are shared, so nothing is ever copied on write: a session that must write into a page which others
//! read gives that page up and computes its tokens again.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::history::{chain, hash_bytes};
use crate::ids::{PageId, TokenId};
use crate::limits::PAGE_TOKENS;

/// Pages that `tokens` need.
#[must_use]
pub fn pages_for(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}

/// What a findable page's content stands on. A hit compares it, so that no collision of hashes joins two histories.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Parent {
    /// It is the first page of histories with this salt.
    Salt(Arc<str>),
    /// The findable page of this serial comes before it.
    Page(u64),
}

/// A findable page's content and name.
#[derive(Clone, Debug)]
struct Content {
    hash: u64,
    serial: u64,
    parent: Parent,
    ids: [TokenId; PAGE_TOKENS],
}

#[derive(Clone, Debug, Default)]
struct Page {
    /// Page tables that hold it.
    references: u32,
    /// There while the page is findable.
    content: Option<Content>,
    /// Its key among the released pages, while it is one.
    released_at: Option<u64>,
}

/// Hash and serial of a findable page: where the next page of a chain continues.
#[derive(Clone, Copy, Debug)]
struct Link {
    hash: u64,
    serial: u64,
}

/// One session's pages in order. Belongs to the [`Pages`] that made it and ends with [`Pages::release`].
#[derive(Debug)]
pub struct PageTable {
    pages: Vec<PageId>,
    /// For the leading pages whose content is findable (in this page or in an equal one).
    links: Vec<Link>,
    salt: Arc<str>,
}

impl PageTable {
    /// The pages in order.
    #[must_use]
    pub fn pages(&self) -> &[PageId] {
        &self.pages
    }

    /// Tokens the pages have room for.
    #[must_use]
    pub fn room(&self) -> usize {
        self.pages.len() * PAGE_TOKENS
    }
}

/// The pool: every page is free, released or referred to.
#[derive(Debug)]
pub struct Pages {
    pages: Vec<Page>,
    free: Vec<PageId>,
    /// By time of release; the first is reused first.
    released: BTreeMap<u64, PageId>,
    /// By content hash.
    found: BTreeMap<u64, PageId>,
    fingerprint: u64,
    serials: u64,
    releases: u64,
}

impl Pages {
    /// A pool of `count` free pages for a model of this fingerprint.
    #[must_use]
    pub fn new(count: usize, fingerprint: &str) -> Self {
        let count = u32::try_from(count).expect("a pool has fewer than 2^32 pages");
        Self {
            pages: vec![Page::default(); count as usize],
            free: (0..count).rev().map(PageId).collect(),
            released: BTreeMap::new(),
            found: BTreeMap::new(),
            fingerprint: hash_bytes(0, fingerprint.as_bytes()),
            serials: 0,
            releases: 0,
        }
    }

    /// A table without pages; only tables of equal salt find one another's pages.
    #[must_use]
    pub fn open(&self, salt: &str) -> PageTable {
        PageTable { pages: Vec::new(), links: Vec::new(), salt: Arc::from(salt) }
    }

    /// Pages of the pool.
    #[must_use]
    pub fn total(&self) -> usize {
        self.pages.len()
    }

    /// Pages that some session refers to.
    #[must_use]
    pub fn used(&self) -> usize {
        self.total() - self.available()
    }

    /// Pages that can be had without taking any from a session: free and released.
    #[must_use]
    pub fn available(&self) -> usize {
        self.free.len() + self.released.len()
    }

    /// Pages of a table that nobody else refers to: what giving them up would free.
    #[must_use]
    pub fn exclusive(&self, table: &PageTable) -> usize {
        table.pages.iter().filter(|page| self.pages[page.index()].references == 1).count()
    }

    /// Makes room for `length` tokens, or changes nothing and says how many pages are missing.
    ///
    /// # Errors
    /// The number of missing pages.
    pub fn extend(&mut self, table: &mut PageTable, length: usize) -> Result<(), usize> {
        let wanted = pages_for(length).saturating_sub(table.pages.len());
        if wanted > self.available() {
            return Err(wanted - self.available());
        }
        for _ in 0..wanted {
            let page = self.take_unused();
            self.pages[page.index()].references = 1;
            table.pages.push(page);
        }
        Ok(())
    }

    /// Drops what lies past `length` and makes slot `length` writable. Returns how many tokens the table still holds:
    /// `length`, or the start of its last page where others read that page and it had to be given up.
    pub fn truncate(&mut self, table: &mut PageTable, length: usize) -> usize {
        while table.pages.len() > pages_for(length) {
            self.drop_last(table);
        }
        table.links.truncate(length / PAGE_TOKENS);
        let cut = length / PAGE_TOKENS;
        let Some(last) = table.pages.get(cut).copied() else { return length };
        if self.pages[last.index()].references > 1 {
            self.drop_last(table);
            return cut * PAGE_TOKENS;
        }
        self.forget(last);
        length
    }

    /// Continues a table that holds the first `held` of `ids`, and no more, with full pages found by content, none
    /// reaching past `limit`. Returns how many tokens it holds then.
    pub fn adopt(&mut self, table: &mut PageTable, ids: &[TokenId], held: usize, limit: usize) -> usize {
        let mut held = held;
        while held == table.links.len() * PAGE_TOKENS && held + PAGE_TOKENS <= limit.min(ids.len()) {
            let ids = &ids[held..held + PAGE_TOKENS];
            let (hash, parent) = self.name(table, ids);
            let Some((page, link)) = self.find(hash, &parent, ids) else { break };
            while table.room() > held {
                self.drop_last(table);
            }
            let entry = &mut self.pages[page.index()];
            entry.references += 1;
            if let Some(stamp) = entry.released_at.take() {
                self.released.remove(&stamp);
            }
            table.pages.push(page);
            table.links.push(link);
            held += PAGE_TOKENS;
        }
        held
    }

    /// Makes the pages that `ids` (all tokens the table holds) fill up findable.
    pub fn register(&mut self, table: &mut PageTable, ids: &[TokenId]) {
        while (table.links.len() + 1) * PAGE_TOKENS <= ids.len() {
            let index = table.links.len();
            let ids = &ids[index * PAGE_TOKENS..(index + 1) * PAGE_TOKENS];
            let (hash, parent) = self.name(table, ids);
            let link = match self.find(hash, &parent, ids) {
                Some((_, link)) => link,
                None => self.make_findable(table.pages[index], hash, parent, ids),
            };
            table.links.push(link);
        }
    }

    /// Gives all pages back; the table is empty and may be used again.
    pub fn release(&mut self, table: &mut PageTable) {
        self.truncate(table, 0);
    }

    /// Whether the slots from `start` on may be written: private pages, not findable.
    #[must_use]
    pub fn is_writable(&self, table: &PageTable, start: usize) -> bool {
        table.pages[(start / PAGE_TOKENS).min(table.pages.len())..].iter().all(|page| {
            let page = &self.pages[page.index()];
            page.references == 1 && page.content.is_none()
        })
    }

    /// Compares the accounts with `tables`, which must be all that are open.
    ///
    /// # Errors
    /// What does not add up.
    pub fn audit<'a>(&self, tables: impl IntoIterator<Item = &'a PageTable>) -> Result<(), String> {
        let mut references = vec![0u32; self.pages.len()];
        for page in tables.into_iter().flat_map(|table| &table.pages) {
            references[page.index()] += 1;
        }
        let mut free = vec![false; self.pages.len()];
        for page in &self.free {
            if std::mem::replace(&mut free[page.index()], true) {
                return Err(format!("page {} is free twice", page.0));
            }
        }
        for (index, page) in self.pages.iter().enumerate() {
            let id = PageId(index as u32);
            let findable = page.content.as_ref().is_some_and(|content| self.found.get(&content.hash) == Some(&id));
            let released = page.released_at.is_some_and(|stamp| self.released.get(&stamp) == Some(&id));
            let fault = if page.references != references[index] {
                "counts other references than the tables hold"
            } else if page.content.is_some() != findable {
                "has content that is not found"
            } else if page.released_at.is_some() != released {
                "is not where released pages are"
            } else if u8::from(free[index]) + u8::from(released) + u8::from(page.references > 0) != 1 {
                "is not exactly one of free, released, referred to"
            } else if released && !findable {
                "is released but not findable"
            } else {
                continue;
            };
            return Err(format!("page {index} {fault}: {page:?}"));
        }
        let findable = self.pages.iter().filter(|page| page.content.is_some()).count();
        if findable != self.found.len() {
            return Err(format!("{} names for {findable} findable pages", self.found.len()));
        }
        Ok(())
    }

    /// The name of the page that continues the table's findable pages with `ids`.
    fn name(&self, table: &PageTable, ids: &[TokenId]) -> (u64, Parent) {
        let (start, parent) = match table.links.last() {
            Some(link) => (link.hash, Parent::Page(link.serial)),
            None => (hash_bytes(self.fingerprint, table.salt.as_bytes()), Parent::Salt(Arc::clone(&table.salt))),
        };
        (ids.iter().fold(start, |hash, token| chain(hash, *token)), parent)
    }

    fn find(&self, hash: u64, parent: &Parent, ids: &[TokenId]) -> Option<(PageId, Link)> {
        let page = *self.found.get(&hash)?;
        let content = self.pages[page.index()].content.as_ref()?;
        let same = content.parent == *parent && content.ids == ids;
        same.then_some((page, Link { hash, serial: content.serial }))
    }

    fn make_findable(&mut self, page: PageId, hash: u64, parent: Parent, ids: &[TokenId]) -> Link {
        // Another content of the same hash: its parent is gone, or the hashes collide. The newer one stays.
        if let Some(other) = self.found.get(&hash).copied() {
            self.forget(other);
            if let Some(stamp) = self.pages[other.index()].released_at.take() {
                self.released.remove(&stamp);
                self.free.push(other);
            }
        }
        self.serials += 1;
        let serial = self.serials;
        let entry = &mut self.pages[page.index()];
        debug_assert!(entry.references == 1 && entry.content.is_none());
        let ids = ids.try_into().expect("a page's tokens");
        entry.content = Some(Content { hash, serial, parent, ids });
        self.found.insert(hash, page);
        Link { hash, serial }
    }

    fn drop_last(&mut self, table: &mut PageTable) {
        let page = table.pages.pop().expect("a table with pages");
        table.links.truncate(table.pages.len());
        let entry = &mut self.pages[page.index()];
        entry.references -= 1;
        if entry.references > 0 {
            return;
        }
        if entry.content.is_none() {
            self.free.push(page);
            return;
        }
        // A table gives up its last page first, so a chain is reused from its end and its beginning stays findable.
        self.releases += 1;
        entry.released_at = Some(self.releases);
        self.released.insert(self.releases, page);
    }

    /// A page nobody refers to, without content; the caller knows that there is one.
    fn take_unused(&mut self) -> PageId {
        if let Some(page) = self.free.pop() {
            return page;
        }
        let (_, page) = self.released.pop_first().expect("an available page");
        self.pages[page.index()].released_at = None;
        self.forget(page);
        page
    }

    /// The page can no longer be found; whoever refers to it keeps it.
    fn forget(&mut self, page: PageId) {
        if let Some(content) = self.pages[page.index()].content.take() {
            self.found.remove(&content.hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pages of tokens that continue `start` to one and the same hash: what an attacker would send.
    fn collision(start: u64) -> [[TokenId; PAGE_TOKENS]; 2] {
        let page = |first, before, last| {
            let mut ids = [0; PAGE_TOKENS];
            (ids[0], ids[PAGE_TOKENS - 2], ids[PAGE_TOKENS - 1]) = (first, before, last);
            ids
        };
        let before_last = |first, before| {
            let ids = page(first, before, 0);
            ids[..PAGE_TOKENS - 1].iter().fold(start, |hash, token| chain(hash, *token))
        };
        // States that agree in their upper half meet after one chosen token.
        let upper: BTreeMap<u64, TokenId> = (0..1 << 18).map(|before| (before_last(1, before) >> 32, before)).collect();
        let meeting = (0..1 << 18).find_map(|before| {
            let state = before_last(2, before);
            let other = *upper.get(&(state >> 32))?;
            let last = (state ^ before_last(1, other) ^ 1).checked_sub(1)?;
            Some([page(1, other, 0), page(2, before, TokenId::try_from(last).ok()?)])
        });
        meeting.expect("2^36 pairs meet in 32 bits")
    }

    #[test]
    fn a_hit_compares_the_tokens_of_all_pages_before() {
        let mut pages = Pages::new(8, "model");
        let [a, b] = collision(hash_bytes(pages.fingerprint, b""));
        let after = [7; PAGE_TOKENS];
        let (first, second) = ([a, after].concat(), [b, after].concat());
        let hash = |ids: &[TokenId]| ids.iter().fold(hash_bytes(pages.fingerprint, b""), |hash, id| chain(hash, *id));
        assert!(first != second && hash(&first) == hash(&second));
        let fill = |pages: &mut Pages, ids: &[TokenId]| {
            let mut table = pages.open("");
            let held = pages.adopt(&mut table, ids, 0, ids.len());
            pages.extend(&mut table, ids.len()).unwrap();
            pages.register(&mut table, ids);
            (table, held)
        };
        let (mut one, found) = fill(&mut pages, &first);
        assert_eq!(found, 0);
        let (mut two, found) = fill(&mut pages, &second);
        assert_eq!(found, 0, "not the first page's tokens, so not the second page either");
        pages.audit([&one, &two]).unwrap();
        let (mut three, found) = fill(&mut pages, &second);
        assert_eq!(found, 32, "the newer of two pages of one hash is found");
        assert_eq!(three.pages(), two.pages(), "and what follows it, not what follows the other");
        for table in [&mut one, &mut two, &mut three] {
            pages.release(table);
        }
        pages.audit([]).unwrap();
        assert_eq!((pages.used(), pages.available()), (0, 8));
    }
}

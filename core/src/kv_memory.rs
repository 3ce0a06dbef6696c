//! How many KV pages a node gets. Pure: what is free is an argument.

use std::fmt;
use std::str::FromStr;

use crate::pages::pages_for;

/// Part of what is free that goes to pages unless told otherwise: two nodes of one machine may both fill theirs.
pub const DEFAULT_SHARE: &str = "40%";

/// What an operator gives a node's KV cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KvMemory {
    /// So many bytes.
    Bytes(u64),
    /// A part, above 0 and up to 1, of what is free once the weights are loaded.
    Share(f64),
}

impl FromStr for KvMemory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sentence = || format!("{text:?} is no amount of memory; write it like 8GiB, 512MiB, 2GB or 40%");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == '%');
        let (number, unit) = (digits.trim(), text[digits.len()..].to_ascii_lowercase());
        let number: f64 = number.parse().ok().filter(|n: &f64| n.is_finite() && *n > 0.0).ok_or_else(sentence)?;
        if unit == "%" {
            return if number <= 100.0 { Ok(Self::Share(number / 100.0)) } else { Err(sentence()) };
        }
        let unit = match unit.as_str() {
            "" | "b" => 1.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "tb" => 1e12,
            "k" | "kib" => 1024.0,
            "m" | "mib" => 1024.0 * 1024.0,
            "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
            "t" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
            _ => return Err(sentence()),
        };
        let bytes = (number * unit).round();
        if (1.0..1e15).contains(&bytes) { Ok(Self::Bytes(bytes as u64)) } else { Err(sentence()) }
    }
}

impl fmt::Display for KvMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Share(share) => write!(f, "{}%", share * 100.0),
        }
    }
}

/// What a node would do with pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Bytes of a page.
    pub page_bytes: usize,
    /// Positions of a session at most.
    pub context: usize,
    /// Sessions at most.
    pub max_sessions: usize,
}

impl KvMemory {
    /// Pages for one of `engines` in a process whose machine has `free` bytes left (if that is known): as many as fit,
    /// and no more than all sessions could fill.
    ///
    /// # Errors
    /// One sentence with the cure: not one page fits, or a share was asked of nobody knows what.
    pub fn pages(self, free: Option<u64>, engines: usize, need: Need) -> Result<usize, String> {
        let bytes = match (self, free) {
            (Self::Bytes(bytes), _) => bytes,
            (Self::Share(share), Some(free)) => (free as f64 * share / engines.max(1) as f64) as u64,
            (Self::Share(_), None) => {
                return Err("this system does not say how much memory is free; give --kv-memory in bytes".into());
            }
        };
        let most = need.max_sessions.saturating_mul(pages_for(need.context));
        match usize::try_from(bytes / need.page_bytes.max(1) as u64).unwrap_or(usize::MAX).min(most) {
            0 => Err(format!(
                "the {bytes} bytes of --kv-memory {self} hold no KV page, which takes {} bytes for this model; give it more",
                need.page_bytes
            )),
            pages => Ok(pages),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NEED: Need = Need { page_bytes: 1 << 20, context: 4096, max_sessions: 1024 };

    #[test]
    fn amounts() {
        let gib = 1_u64 << 30;
        for (text, memory) in [
            ("8GiB", KvMemory::Bytes(8 * gib)),
            ("8g", KvMemory::Bytes(8 * gib)),
            ("1.5 GiB", KvMemory::Bytes(3 * gib / 2)),
            ("2GB", KvMemory::Bytes(2_000_000_000)),
            ("512MiB", KvMemory::Bytes(gib / 2)),
            ("1048576", KvMemory::Bytes(1 << 20)),
            (DEFAULT_SHARE, KvMemory::Share(0.4)),
            ("100%", KvMemory::Share(1.0)),
        ] {
            assert_eq!(text.parse(), Ok(memory), "{text}");
            assert_eq!(memory.to_string().parse(), Ok(memory), "{text}");
        }
        for text in ["", "%", "GiB", "0", "-1GiB", "101%", "5 parsecs", "1e300", "nan", "inf%"] {
            assert!(text.parse::<KvMemory>().is_err_and(|error| error.contains("8GiB")), "{text}");
        }
    }

    #[test]
    fn pages_of_a_budget() {
        let pages = |memory: &str, free, engines| memory.parse::<KvMemory>().unwrap().pages(free, engines, NEED);
        assert_eq!(pages("1GiB", None, 4), Ok(1024), "each node's own");
        assert_eq!(pages("40%", Some(10 << 30), 1), Ok(4096));
        assert_eq!(pages("40%", Some(10 << 30), 4), Ok(1024), "shared by the nodes of a process");
        assert_eq!(pages("1TiB", None, 1), Ok(256 * 1024), "no more than all sessions could fill");
        assert!(pages("1MB", None, 1).is_err_and(|error| error.contains("1048576 bytes")));
        assert!(pages("40%", None, 1).is_err_and(|error| error.contains("in bytes")));
    }

    proptest! {
        /// The engines of a process together never take more than was given.
        #[test]
        fn the_budget_holds(
            share in 0.01f64..1.0,
            free in 0u64..1 << 44,
            engines in 1usize..9,
            page_bytes in 1usize..1 << 24,
            max_sessions in 1usize..5_000,
        ) {
            let need = Need { page_bytes, max_sessions, ..NEED };
            let pages = KvMemory::Share(share).pages(Some(free), engines, need).unwrap_or(0);
            prop_assert!((pages * engines) as f64 * page_bytes as f64 <= free as f64 * share + 1.0);
            prop_assert!(pages <= max_sessions * pages_for(need.context));
        }
    }
}

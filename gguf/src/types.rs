//! Types of tensors.

/// How the values of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// Four bytes a value.
    F32,
    /// binary16.
    F16,
    /// The upper half of an `f32`.
    BF16,
    /// Blocks of 32: a scale and signed bytes.
    Q8_0,
    /// Blocks of 32: a scale and four bits a value.
    Q4_0,
    /// Blocks of 256: eight scales and minima of six bits, four bits a value.
    Q4K,
    /// As Q4_K with five bits a value.
    Q5K,
    /// Blocks of 256: sixteen scales of eight bits, six bits a value.
    Q6K,
    /// One that is known to exist, or not even that.
    Other(u32),
}

/// Code, name, values and bytes of a block, of all that files hold today.
const TABLE: [(u32, &str, u64, u64); 31] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 40),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
];

impl TensorType {
    /// The type of a code.
    #[must_use]
    pub fn of(code: u32) -> Self {
        match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::BF16,
            other => Self::Other(other),
        }
    }

    /// Its code in a file.
    #[must_use]
    pub fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::BF16 => 30,
            Self::Other(code) => code,
        }
    }

    fn entry(self) -> Option<(&'static str, u64, u64)> {
        TABLE.iter().find(|(code, ..)| *code == self.code()).map(|&(_, name, values, bytes)| (name, values, bytes))
    }

    /// Whether the size of its blocks is known.
    #[must_use]
    pub fn known(self) -> bool {
        self.entry().is_some()
    }

    /// Bytes of `values` in rows of `width`; `None` where a row is no whole number of blocks, or for a type whose blocks
    /// are not known.
    #[must_use]
    pub fn bytes(self, values: u64, width: u64) -> Option<u64> {
        let (_, block, bytes) = self.entry()?;
        if !width.is_multiple_of(block) { None } else { (values / block).checked_mul(bytes) }
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.entry() {
            Some((name, ..)) => f.write_str(name),
            None => write!(f, "number {}", self.code()),
        }
    }
}

//! Product, norm and attention kernels: one source, several instruction sets, the same bits.

#![allow(unsafe_code)] // SIMD intrinsics and strided stores from several threads; every caller states what it upholds.
#![allow(unsafe_op_in_unsafe_fn)] // In kernels nearly every line is an intrinsic or a raw access: blocks would only hide it.

pub(crate) mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;
mod packed;
mod peak;
mod portable;
pub(crate) mod product;
pub(crate) mod rowwise;
#[cfg(test)]
mod tests;

use attention::Attend;
use peak::Peak;
use product::Product;
use rowwise::{Norm, Quantise, Rotate};

use crate::matrix::Store;
use crate::quant::Packing;

/// A family of instructions. All give the same bits; they differ in speed only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimdPath {
    /// Plain Rust. Slow where the target has no fused multiply-add of its own.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL and DQ; VNNI is used where the CPU has it.
    Avx512,
    /// NEON; the dot product extension is used where the CPU has it.
    Neon,
}

impl SimdPath {
    /// All of them; of those that one CPU has, the slowest first.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Neon];

    /// The fastest that this CPU has.
    #[must_use]
    pub fn detect() -> Self {
        Self::ALL.into_iter().rev().find(|path| path.available()).unwrap_or(Self::Portable)
    }

    /// Whether this CPU has it.
    #[must_use]
    pub fn available(self) -> bool {
        Isa::of(self).is_some()
    }
}

impl std::str::FromStr for SimdPath {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name.to_ascii_lowercase().as_str() {
            "portable" => Ok(Self::Portable),
            "avx2" => Ok(Self::Avx2),
            "avx512" => Ok(Self::Avx512),
            "neon" => Ok(Self::Neon),
            _ => Err(format!("'{name}' is no SIMD path; use portable, avx2, avx512 or neon")),
        }
    }
}

/// The instructions really used; one exists only if the CPU has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "aarch64")]
    NeonDot,
}

impl Isa {
    /// The instructions of a path, if this CPU has them.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn of(path: SimdPath) -> Option<Self> {
        let avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        let avx512 = avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq");
        match path {
            SimdPath::Portable => Some(Self::Portable),
            SimdPath::Avx2 => avx2.then_some(Self::Avx2),
            SimdPath::Avx512 if avx512 && is_x86_feature_detected!("avx512vnni") => Some(Self::Avx512Vnni),
            SimdPath::Avx512 => avx512.then_some(Self::Avx512),
            SimdPath::Neon => None,
        }
    }

    /// The instructions of a path, if this CPU has them.
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn of(path: SimdPath) -> Option<Self> {
        match path {
            SimdPath::Portable => Some(Self::Portable),
            // Every CPU of this target has NEON.
            SimdPath::Neon if std::arch::is_aarch64_feature_detected!("dotprod") => Some(Self::NeonDot),
            SimdPath::Neon => Some(Self::Neon),
            SimdPath::Avx2 | SimdPath::Avx512 => None,
        }
    }

    /// The instructions of a path, if this CPU has them.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    pub(crate) fn of(path: SimdPath) -> Option<Self> {
        (path == SimdPath::Portable).then_some(Self::Portable)
    }

    /// Most queries a call of [`Isa::attend`] takes.
    pub(crate) fn queries(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Vnni => 8,
            _ => 4,
        }
    }

    /// A product of rows with tiles of any matrix.
    ///
    /// # Safety
    /// As of the products that it chooses among.
    pub(crate) unsafe fn multiply(self, p: &Product<'_>) {
        match &p.matrix.store {
            Store::F32(_) | Store::Q8 { .. } => self.product(p),
            Store::Packed(packed) => match packed.packing {
                Packing::Q4_0 => self.product_4(p),
                Packing::Q4K => self.product_4k(p),
                Packing::Q5K => self.product_5k(p),
                Packing::Q6K => self.product_6k(p),
            },
        }
    }

    /// Whether the path is the slow one.
    pub(crate) fn portable(self) -> bool {
        self == Self::Portable
    }
}

macro_rules! kernels {
    ($($(#[$doc:meta])* $name:ident($args:ty) in $module:ident;)*) => {
        impl Isa {
            $(
                $(#[$doc])*
                ///
                /// # Safety
                /// The pointers in `args` are valid for the lengths its fields name, and no other thread writes what
                /// this call reads or touches what it writes.
                #[inline]
                pub(crate) unsafe fn $name(self, args: &$args) {
                    #[cfg(target_arch = "x86_64")]
                    {
                        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
                        unsafe fn avx512_vnni(args: &$args) {
                            $module::$name::<avx512::Avx512<true>>(args);
                        }
                        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
                        unsafe fn avx512(args: &$args) {
                            $module::$name::<avx512::Avx512<false>>(args);
                        }
                        #[target_feature(enable = "avx2,fma,f16c")]
                        unsafe fn avx2(args: &$args) {
                            $module::$name::<avx2::Avx2>(args);
                        }
                        // SAFETY: a variant exists only where `Isa::of` found its instructions.
                        match self {
                            Self::Portable => $module::$name::<portable::Portable>(args),
                            Self::Avx2 => avx2(args),
                            Self::Avx512 => avx512(args),
                            Self::Avx512Vnni => avx512_vnni(args),
                        }
                    }
                    #[cfg(target_arch = "aarch64")]
                    {
                        #[target_feature(enable = "neon,dotprod")]
                        unsafe fn neon_dot(args: &$args) {
                            $module::$name::<neon::Neon<true>>(args);
                        }
                        #[target_feature(enable = "neon")]
                        unsafe fn neon(args: &$args) {
                            $module::$name::<neon::Neon<false>>(args);
                        }
                        // SAFETY: as above.
                        match self {
                            Self::Portable => $module::$name::<portable::Portable>(args),
                            Self::Neon => neon(args),
                            Self::NeonDot => neon_dot(args),
                        }
                    }
                    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
                    $module::$name::<portable::Portable>(args);
                }
            )*
        }
    };
}

kernels! {
    /// A product of rows with tiles of an `f32` or Q8_0 matrix.
    product(Product<'_>) in product;
    /// A product of rows with tiles of a Q4_0 matrix.
    product_4(Product<'_>) in packed;
    /// A product of rows with tiles of a Q4_K matrix.
    product_4k(Product<'_>) in packed;
    /// A product of rows with tiles of a Q5_K matrix.
    product_5k(Product<'_>) in packed;
    /// A product of rows with tiles of a Q6_K matrix.
    product_6k(Product<'_>) in packed;
    /// RMS norm of a row.
    rms_norm(Norm) in rowwise;
    /// Quantises blocks of 32.
    quantise(Quantise) in rowwise;
    /// Rotary positions.
    rotate(Rotate) in rowwise;
    /// Attention of a few queries over pages of `f32`.
    attend(Attend<'_, f32>) in attention;
    /// Attention of a few queries over pages of binary16.
    attend_half(Attend<'_, u16>) in attention;
    /// What the arithmetic units can do at most.
    peak(Peak) in peak;
}

/// Keeps this thread's arithmetic units busy with the Q8_0 product's own instruction for `rounds` rounds and returns the
/// additions and multiplications done: what a measured speed is held against.
#[must_use]
pub fn busy(rounds: u64) -> u64 {
    let isa = Isa::of(SimdPath::detect()).unwrap_or(Isa::Portable);
    let mut out = [0.0; crate::matrix::TILE];
    // SAFETY: `out` has room for a tile.
    unsafe { isa.peak(&Peak { rounds, out: out.as_mut_ptr() }) };
    std::hint::black_box(out);
    Peak::operations(rounds)
}

//! By a kernel of our own (`cuda/attention.cu`), which reads keys and values where they are.

#![allow(unsafe_code)] // Launching a kernel.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaView, DeviceRepr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::{CpuStorage, CudaStorage, CustomOp3, DType, Device, Layout, Result, Shape as Dims, Tensor, bail};

use super::{SPLIT, Shape};
use crate::plan::Plan;

/// What build.rs made of `cuda/attention.cu`.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/attention.ptx"));
const MODULE: &str = "cascadia_attention";
/// Query heads of a block, and its threads; `cuda/attention.cu` has the same numbers.
const GROUP: usize = 4;
const THREADS: u32 = 128;

/// The rows of a pass on the device.
pub(super) struct Paged {
    rows: usize,
    splits: usize,
    /// Of each row three numbers, then all pages; see [`crate::plan::Paged`].
    rows_and_pages: Tensor,
}

impl Paged {
    pub(super) fn new(plan: &Plan, window: Option<usize>, device: &Device) -> Result<Self> {
        let paged = plan.paged(window);
        let splits = paged.longest.div_ceil(SPLIT);
        Ok(Self { rows: plan.tokens.len(), splits, rows_and_pages: Tensor::new(paged.rows_and_pages, device)? })
    }

    /// As of [`super::Prepared::attend`].
    pub(super) fn attend(&self, shape: Shape, queries: &Tensor, cache: &Tensor) -> Result<Tensor> {
        let launch = Launch { shape, rows: self.rows, splits: self.splits };
        queries.apply_op3_no_bwd(cache, &self.rows_and_pages, &launch)
    }
}

/// One launch: of queries, the cache, and rows with pages.
struct Launch {
    shape: Shape,
    rows: usize,
    splits: usize,
}

/// What of a storage a layout means.
fn view<'a, T: CudaDType + DeviceRepr>(storage: &'a CudaStorage, layout: &Layout) -> Result<CudaView<'a, T>> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("the paged kernel reads whole tensors only") };
    Ok(storage.as_cuda_slice::<T>()?.slice(start..end))
}

impl CustomOp3 for Launch {
    fn name(&self) -> &'static str {
        "paged-attention"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Dims)> {
        bail!("the paged kernel runs on cards")
    }

    fn cuda_fwd(
        &self,
        queries: &CudaStorage,
        of_queries: &Layout,
        cache: &CudaStorage,
        of_cache: &Layout,
        rows_and_pages: &CudaStorage,
        of_rows: &Layout,
    ) -> Result<(CudaStorage, Dims)> {
        let inputs = (view::<f32>(queries, of_queries)?, view::<u32>(rows_and_pages, of_rows)?);
        match cache.dtype() {
            DType::F32 => self.launch(queries, inputs, view::<f32>(cache, of_cache)?, "f32"),
            DType::F16 => self.launch(queries, inputs, view::<half::f16>(cache, of_cache)?, "f16"),
            DType::BF16 => self.launch(queries, inputs, view::<half::bf16>(cache, of_cache)?, "bf16"),
            other => bail!("no paged kernel reads {other:?}"),
        }
    }
}

impl Launch {
    fn launch<T: DeviceRepr>(
        &self,
        storage: &CudaStorage,
        (queries, rows_and_pages): (CudaView<'_, f32>, CudaView<'_, u32>),
        cache: CudaView<'_, T>,
        kind: &str,
    ) -> Result<(CudaStorage, Dims)> {
        let Shape { heads, kv_heads, head_dim, scale, cap } = self.shape;
        let Some(width) = [64, 128, 256].into_iter().find(|&width| head_dim <= width) else {
            bail!("the paged kernel takes heads of up to 256 values, and these have {head_dim}")
        };
        let device = storage.device().clone();
        let (rows, splits) = (self.rows, self.splits);
        let (numbers, pages) = (rows_and_pages.slice(..3 * rows), rows_and_pages.slice(3 * rows..));
        // SAFETY: both are written whole before they are read: parts by the first kernel, out by the second.
        let mut parts = unsafe { device.alloc::<f32>(rows * heads * splits * (head_dim + 2))? };
        // SAFETY: as above.
        let mut out = unsafe { device.alloc::<f32>(rows * heads * head_dim)? };
        let chunks = (heads / kv_heads).div_ceil(GROUP);
        let grid = |y: usize, z: usize| LaunchConfig {
            grid_dim: (rows as u32, y as u32, z as u32),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        let (dims, cap) = ([heads as u32, kv_heads as u32, head_dim as u32, splits as u32], cap.unwrap_or(0.0));

        let attend = device.get_or_load_custom_func(&format!("attend_{kind}_{width}"), MODULE, PTX)?;
        let mut builder = attend.builder();
        builder.arg(&queries).arg(&cache).arg(&numbers).arg(&pages).arg(&mut parts);
        builder.arg(&dims[0]).arg(&dims[1]).arg(&dims[2]).arg(&scale).arg(&cap);
        // SAFETY: the arguments are those of `ATTEND` in their order and types; the engine has checked that every page and
        // slot of a row exists; a part is written by one block.
        unsafe { builder.launch(grid(kv_heads * chunks, splits)) }.w()?;

        let join = device.get_or_load_custom_func("join", MODULE, PTX)?;
        let mut builder = join.builder();
        builder.arg(&parts).arg(&mut out).arg(&dims[2]).arg(&dims[3]);
        // SAFETY: the arguments are those of `join`; the stream runs it after the kernel that wrote the parts.
        unsafe { builder.launch(grid(heads, 1)) }.w()?;
        Ok((CudaStorage::wrap_cuda_slice(out, device), Dims::from((rows, heads * head_dim))))
    }
}

//! placeholder
use std::path::Path;
use crate::error::LoadError;
use crate::weights::Progress;
/// report
#[derive(Debug)]
pub struct PadReport;
/// pad
pub fn pad(_a:&Path,_t:u64,_b:&Path,_p:&mut dyn FnMut(Progress<'_>))->Result<PadReport,LoadError>{Err(LoadError::Pad("later".into()))}

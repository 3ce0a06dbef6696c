//! How bad the failure of a device is.
//!
//! A pass that found no memory says nothing of the next one. After an illegal address, a failed launch or a lost card every
//! call of the process fails, at once: such a node would look idle and draw all sessions to it, so it has to end.

use cascadia_core::engine::EngineError;

/// The driver's errors after which its context is unusable, or the card gone, for as long as the process lives.
const FATAL: [&str; 24] = [
    "CUDA_ERROR_DEINITIALIZED",
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
    "CUDA_ERROR_NO_DEVICE",
    "CUDA_ERROR_INVALID_CONTEXT",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_TENSOR_MEMORY_LEAK",
    "CUDA_ERROR_SYSTEM_NOT_READY",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    "CUDA_ERROR_MPS_CONNECTION_FAILED",
    "CUDA_ERROR_MPS_RPC_FAILURE",
    "CUDA_ERROR_MPS_SERVER_NOT_READY",
    "CUDA_ERROR_MPS_CLIENT_TERMINATED",
    "CUDA_ERROR_EXTERNAL_DEVICE",
];

/// Errors of too little memory: they pass.
const MEMORY: [&str; 3] = ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED", "CURAND_STATUS_ALLOCATION_FAILED"];

/// Reads the error of a failed pass. Where its name does not say how bad it is, `probe` tells, which has the device do
/// something small.
pub(crate) fn read<E: std::fmt::Display>(error: &str, probe: impl FnOnce() -> Result<(), E>) -> EngineError {
    if names(&FATAL, error) {
        return EngineError::Fatal(format!("the device failed: {error}"));
    }
    if names(&MEMORY, error) {
        return EngineError::Pass(format!("the device failed: {error}"));
    }
    match probe().map_err(|probed| probed.to_string()) {
        Err(probed) if !names(&MEMORY, &probed) => {
            EngineError::Fatal(format!("the device failed: {error}; since then it does nothing: {probed}"))
        }
        _ => EngineError::Pass(format!("the device failed: {error}")),
    }
}

/// Whether an error has one of these names, whole.
fn names(known: &[&str], error: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    error.split(|c| !is_part(c)).any(|word| known.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the driver's errors read.
    fn driver(name: &str) -> String {
        format!("DriverError({name}, \"a sentence\")")
    }

    fn read_as(error: &str, probe: Result<(), String>) -> EngineError {
        read(error, || probe)
    }

    #[test]
    fn a_lost_context_is_fatal_and_too_little_memory_is_not() {
        for name in FATAL {
            let fatal = read_as(&driver(name), Ok(()));
            assert!(matches!(&fatal, EngineError::Fatal(problem) if problem.contains(name)), "{fatal:?}");
        }
        for name in MEMORY {
            // Nor is anything asked of a device that is full.
            let passing = read(&driver(name), || -> Result<(), String> { panic!("it was probed") });
            assert!(matches!(&passing, EngineError::Pass(problem) if problem.contains(name)), "{passing:?}");
        }
    }

    #[test]
    fn where_the_name_says_nothing_the_device_is_asked() {
        let unknown = driver("CUDA_ERROR_UNKNOWN");
        assert!(matches!(read_as(&unknown, Ok(())), EngineError::Pass(_)));
        assert!(matches!(read_as(&unknown, Err(driver("CUDA_ERROR_OUT_OF_MEMORY"))), EngineError::Pass(_)));
        let fatal = read_as("CUBLAS_STATUS_EXECUTION_FAILED", Err(unknown));
        let EngineError::Fatal(problem) = fatal else { panic!("{fatal:?}") };
        assert!(
            problem.contains("CUBLAS_STATUS_EXECUTION_FAILED") && problem.contains("CUDA_ERROR_UNKNOWN"),
            "{problem}"
        );
        // A name is a whole word: this one only begins like one of a full card.
        assert!(matches!(read_as("CUDA_ERROR_OUT_OF_MEMORY_X", Err("gone".to_owned())), EngineError::Fatal(_)));
    }

    #[test]
    fn the_processor_always_answers() {
        assert!(crate::Device::cpu().answers().is_ok());
    }
}

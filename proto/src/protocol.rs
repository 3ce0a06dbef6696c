//! Which protocol two nodes speak: the highest that both know.

use crate::v1::ProtocolRange;

/// Lowest and highest protocol this build speaks: N-1 and N, once there is an N-1.
pub const PROTOCOL: (u32, u32) = (1, 1);

/// This build's range, as it travels.
#[must_use]
pub fn range() -> ProtocolRange {
    ProtocolRange { min: PROTOCOL.0, max: PROTOCOL.1 }
}

/// The protocol to speak with a node of that range.
///
/// # Errors
/// One sentence that names both ranges, where they do not overlap.
pub fn negotiate(theirs: &ProtocolRange) -> Result<u32, String> {
    let (min, max) = PROTOCOL;
    let highest = theirs.max.min(max);
    if theirs.min <= theirs.max && highest >= theirs.min.max(min) {
        return Ok(highest);
    }
    let older = if theirs.max < min { "the caller" } else { "this node" };
    Err(format!(
        "no common protocol: the caller speaks {} to {}, this node {min} to {max}; upgrade {older}",
        theirs.min, theirs.max
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_common_protocol_is_spoken() {
        assert_eq!(negotiate(&range()), Ok(1));
        assert_eq!(negotiate(&ProtocolRange { min: 0, max: 9 }), Ok(1));
        let error = negotiate(&ProtocolRange { min: 2, max: 3 }).unwrap_err();
        assert!(
            error.contains("2 to 3") && error.contains("1 to 1") && error.ends_with("upgrade this node"),
            "{error}"
        );
        assert!(negotiate(&ProtocolRange::default()).unwrap_err().ends_with("upgrade the caller"));
        assert!(negotiate(&ProtocolRange { min: 3, max: 1 }).is_err());
    }
}

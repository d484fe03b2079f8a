//! An export's files: C2SP tlog-tiles, with the history of checkpoints and the long texts beside it.
//!
//! | path | content |
//! | --- | --- |
//! | `checkpoint` | the signed checkpoint; written last |
//! | `checkpoints` | all signed checkpoints up to it, by size, each followed by an empty line |
//! | `tile/L/N`, `tile/L/N.p/W` | W hashes of 32 bytes (256 in a full tile) of the tree's level 8 L |
//! | `tile/entries/N`, `tile/entries/N.p/W` | W leaves, each after its length in two bytes, big-endian |
//! | `blobs/HASH` | a text of that SHA-256 |
//!
//! `N` is written in groups of three digits, all but the last with an `x` before it.

/// The signed checkpoint's file.
pub const CHECKPOINT: &str = "checkpoint";
/// The history's file.
pub const HISTORY: &str = "checkpoints";
/// The folder of long texts.
pub const TEXTS: &str = "blobs";
/// Hashes in a full tile, leaves in a full bundle.
pub const WIDTH: u64 = 256;
/// Levels of the tree in one level of tiles.
pub const TILE_LEVELS: u8 = 8;
/// Levels of tiles that a tree can have whose leaves are counted in 64 bits.
pub const LEVELS: u8 = 8;
/// The longest bundle, in bytes: 256 leaves of 65,535 bytes, each after its length.
pub const BUNDLE_BYTES_MAX: u64 = 256 * (65_535 + 2);

/// How many subtrees of `level` tile levels are complete in a tree of `size` leaves.
pub fn complete(size: u64, level: u8) -> u64 {
    size.checked_shr(u32::from(level).saturating_mul(u32::from(TILE_LEVELS))).unwrap_or(0)
}

/// The width of tile `number` where its level has `count` hashes: 256, or fewer in the last one.
pub fn width(count: u64, number: u64) -> u64 {
    count.saturating_sub(number.saturating_mul(WIDTH)).min(WIDTH)
}

/// The path of a tile.
pub fn tile(level: u8, number: u64, width: u64) -> String {
    format!("tile/{level}/{}", numbered(number, width))
}

/// The path of a bundle of leaves.
pub fn entries(number: u64, width: u64) -> String {
    format!("tile/entries/{}", numbered(number, width))
}

fn numbered(number: u64, width: u64) -> String {
    let digits = number.to_string();
    let missing = match digits.len().checked_rem(3) {
        Some(1) => 2,
        Some(2) => 1,
        _ => 0,
    };
    let digits = format!("{}{digits}", "0".repeat(missing));
    let groups: Vec<&[u8]> = digits.as_bytes().chunks(3).collect();
    let last = groups.len().saturating_sub(1);
    let groups: Vec<String> = (0..)
        .zip(groups)
        .map(|(place, group)| {
            let sign = if place == last { "" } else { "x" };
            format!("{sign}{}", String::from_utf8_lossy(group))
        })
        .collect();
    let path = groups.join("/");
    if width == WIDTH { path } else { format!("{path}.p/{width}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_specification() {
        // The example of C2SP tlog-tiles.
        assert_eq!(tile(0, 1_234_067, 256), "tile/0/x001/x234/067");
        assert_eq!(tile(3, 0, 112), "tile/3/000.p/112");
        assert_eq!(entries(999, 256), "tile/entries/999");
        assert_eq!(entries(1000, 1), "tile/entries/x001/000.p/1");
    }

    #[test]
    fn a_tree_has_the_tiles_that_the_specification_counts() {
        // 70,000 = 273 * 256 + 112; 273 = 256 + 17.
        assert_eq!([0, 1, 2].map(|level| complete(70_000, level)), [70_000, 273, 1]);
        assert_eq!(
            (width(70_000, 273), width(273, 0), width(273, 1), width(1, 0)),
            (112, 256, 17, 1)
        );
        assert_eq!((complete(u64::MAX, 7), complete(u64::MAX, 8)), (255, 0));
    }
}

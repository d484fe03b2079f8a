//! Whether the logs that a node gave for a block are all of them.
//!
//! A lagging node, or a provider that cuts answers, gives an empty or shorter list without an error.
//! Two facts of the protocol tell: the logs of a block are numbered from 0 without gaps, and the bloom
//! filter in the header (Yellow Paper, section 4.3.1) is made of exactly those logs. So the watcher
//! reads *all* logs of a block and makes the filter again; a false positive of the filter is then no
//! reason to wait, and a missing log is one.

use super::Place;
use alloy::primitives::{Address, B256, Bloom, BloomInput};

/// What a log says of its place, and what of it is in the filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenLog<'a> {
    /// Its block.
    pub block: Place,
    /// Its index in the block.
    pub index: u64,
    /// The emitter.
    pub address: Address,
    /// All topics.
    pub topics: &'a [B256],
}

/// Why a list of logs cannot be that of the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Incomplete {
    /// Not numbered 0, 1, 2 and so on.
    #[error("the logs of the block are not numbered without gaps")]
    Gap,
    /// Of another block.
    #[error("a log of another block")]
    Foreign,
    /// The header's bloom filter has what they have not.
    #[error("the logs do not make the block's bloom filter: some are missing")]
    Bloom,
    /// They have what the header's bloom filter has not: nothing shows that any is missing, but the filter, or
    /// a log, is wrong.
    #[error("the block's bloom filter lacks logs that are there: it is of no use")]
    Filter,
}

/// Whether the header's bloom filter excludes logs of this event of this contract. A filter that is
/// not 256 bytes long excludes nothing.
#[must_use]
pub fn may_have(logs_bloom: &[u8], address: Address, topic0: B256) -> bool {
    Bloom::try_from(logs_bloom).map_or(true, |bloom| {
        bloom.contains_input(BloomInput::Raw(address.as_slice()))
            && bloom.contains_input(BloomInput::Raw(topic0.as_slice()))
    })
}

/// Checks that these are all logs of the block, in the order of their indices.
///
/// # Errors
/// Says what shows that they are not. Without a bloom filter to compare (chains that leave it out),
/// only the numbering is checked.
pub fn check(
    block: Place,
    logs_bloom: Option<&[u8]>,
    logs: &[SeenLog<'_>],
) -> Result<(), Incomplete> {
    let mut made = Bloom::ZERO;
    for (index, log) in (0_u64..).zip(logs) {
        if log.block != block {
            return Err(Incomplete::Foreign);
        }
        if log.index != index {
            return Err(Incomplete::Gap);
        }
        made.accrue_raw_log(log.address, log.topics);
    }
    match logs_bloom {
        Some(bloom) if bloom != made.as_slice() => {
            let covers = Bloom::try_from(bloom).is_ok_and(|header| made.contains(&header));
            Err(if covers { Incomplete::Filter } else { Incomplete::Bloom })
        }
        _ => Ok(()),
    }
}

/// Whether the header's bloom filter says that the block has no log at all.
#[must_use]
pub fn has_none(logs_bloom: &[u8]) -> bool {
    logs_bloom.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: Place = Place { number: 7, hash: B256::repeat_byte(7) };
    const ADDRESS: Address = Address::repeat_byte(0xaa);

    fn topics(count: u8) -> Vec<B256> {
        (0..count).map(B256::repeat_byte).collect()
    }

    fn logs(topics: &[B256]) -> Vec<SeenLog<'_>> {
        (0..)
            .zip(topics.chunks(1))
            .map(|(index, topics)| SeenLog { block: BLOCK, index, address: ADDRESS, topics })
            .collect()
    }

    fn bloom(logs: &[SeenLog<'_>]) -> Vec<u8> {
        let mut bloom = Bloom::ZERO;
        for log in logs {
            bloom.accrue_raw_log(log.address, log.topics);
        }
        bloom.as_slice().to_vec()
    }

    #[test]
    fn all_logs_of_a_block_are_complete() {
        let topics = topics(5);
        let logs = logs(&topics);
        assert_eq!(check(BLOCK, Some(&bloom(&logs)), &logs), Ok(()));
        assert_eq!(check(BLOCK, Some(&bloom(&[])), &[]), Ok(()));
    }

    #[test]
    fn an_empty_or_cut_list_is_seen() {
        let topics = topics(5);
        let logs = logs(&topics);
        let bloom = bloom(&logs);
        assert_eq!(check(BLOCK, Some(&bloom), &[]), Err(Incomplete::Bloom));
        assert_eq!(check(BLOCK, Some(&bloom), &logs[..3]), Err(Incomplete::Bloom));
        assert_eq!(check(BLOCK, Some(&bloom), &logs[1..]), Err(Incomplete::Gap));
        assert_eq!(check(BLOCK, None, &logs[1..]), Err(Incomplete::Gap));
    }

    #[test]
    fn a_filter_that_lacks_logs_is_told_from_logs_that_are_missing() {
        let topics = topics(5);
        let logs = logs(&topics);
        let (none, some) = (bloom(&[]), bloom(&logs[..3]));
        assert!(has_none(&none) && !has_none(&some));
        assert_eq!(check(BLOCK, Some(&none), &logs), Err(Incomplete::Filter));
        assert_eq!(check(BLOCK, Some(&some), &logs), Err(Incomplete::Filter));
        assert_eq!(check(BLOCK, Some(&some), &logs[..2]), Err(Incomplete::Bloom));
    }

    #[test]
    fn logs_of_another_block_are_seen() {
        let topics = topics(1);
        let logs = logs(&topics);
        let other = Place { hash: B256::ZERO, ..BLOCK };
        assert_eq!(check(other, Some(&bloom(&logs)), &logs), Err(Incomplete::Foreign));
    }

    #[test]
    fn the_filter_excludes_other_events() {
        let topics = topics(1);
        let bloom = bloom(&logs(&topics));
        assert!(may_have(&bloom, ADDRESS, topics[0]));
        assert!(!may_have(&bloom, Address::ZERO, topics[0]));
        assert!(!may_have(&bloom, ADDRESS, B256::repeat_byte(0x99)));
        assert!(may_have(&[], ADDRESS, topics[0]), "no filter excludes nothing");
    }
}

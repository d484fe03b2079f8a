//! When several nodes' words are enough to believe what one of them said.
//!
//! Nodes are named by their place in the configuration, from 1.

/// What a chain's nodes said to one claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Those that say the same, with whoever claimed it.
    pub agree: Vec<usize>,
    /// Those that gave no answer, or have not got that far yet.
    pub silent: Vec<usize>,
    /// Those whose chain says otherwise.
    pub contradict: Vec<usize>,
}

impl Agreement {
    /// More than half of all nodes agree; or nobody contradicts, and at least `least` nodes agree. With one
    /// node that lies among three, the claim of the other two is enough and its own never is.
    #[must_use]
    pub fn is_enough(&self, least: usize) -> bool {
        let unopposed = self.contradict.is_empty() && self.agree.len() >= least.max(1);
        self.is_carried() || unopposed
    }

    /// Whether more than half of all nodes say the same.
    #[must_use]
    pub fn is_carried(&self) -> bool {
        self.is_more_than_half(&self.agree)
    }

    /// Whether more than half of all nodes say otherwise.
    #[must_use]
    pub fn is_outvoted(&self) -> bool {
        self.is_more_than_half(&self.contradict)
    }

    fn is_more_than_half(&self, nodes: &[usize]) -> bool {
        let others = [&self.agree, &self.silent, &self.contradict].map(Vec::len);
        let all = others.into_iter().fold(0_usize, usize::saturating_add);
        nodes.len().saturating_mul(2) > all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many agree, are silent, contradict.
    fn said(agree: usize, silent: usize, contradict: usize) -> Agreement {
        let places = |count| (1..=count).collect();
        Agreement { agree: places(agree), silent: places(silent), contradict: places(contradict) }
    }

    #[test]
    fn more_than_half_of_all_nodes_are_enough_whatever_the_others_say() {
        assert!(said(2, 0, 1).is_enough(3));
        assert!(said(2, 1, 0).is_enough(3));
        assert!(said(3, 0, 2).is_enough(5));
        assert!(!said(2, 0, 2).is_enough(1), "half is not more than half");
    }

    #[test]
    fn fewer_are_enough_where_nobody_contradicts() {
        assert!(said(1, 1, 0).is_enough(1));
        assert!(!said(1, 1, 0).is_enough(2), "rather wait than believe one");
        assert!(!said(1, 0, 1).is_enough(1));
        assert!(said(2, 3, 0).is_enough(2));
        assert!(!said(2, 2, 1).is_enough(2));
        assert!(said(1, 0, 0).is_enough(1), "the only node");
    }

    #[test]
    fn nobodys_word_is_never_enough() {
        assert!(!said(0, 3, 0).is_enough(0));
        assert!(!said(0, 0, 0).is_enough(0));
    }

    #[test]
    fn a_claim_is_outvoted_by_the_rule_by_which_it_is_carried() {
        for agree in 0..4 {
            for silent in 0..4 {
                for contradict in 0..4 {
                    let one = said(agree, silent, contradict);
                    let other = said(contradict, silent, agree);
                    assert_eq!(one.is_outvoted(), other.is_carried(), "{one:?}");
                    let is_both = (1..4).any(|least| one.is_enough(least) && one.is_outvoted());
                    assert!(!is_both, "{one:?}");
                }
            }
        }
        assert!(said(1, 0, 2).is_outvoted() && !said(1, 1, 1).is_outvoted());
    }
}

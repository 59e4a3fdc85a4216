//! Which rows a sweep computes, and in which batches.
//!
//! Prompts that begin alike may share what they begin with: it is computed once, and every prompt goes on from a copy of
//! the state after it (keys and values, convolution tails, scan states). No bit depends on it, since a row depends on the
//! tokens before it and on nothing else.

use crate::memory::Demand;
use std::collections::BTreeMap;
use std::ops::Range;

/// Tokens that are worth a copy of a state.
const WORTH_SHARING: usize = 8;
/// Prompts that share one beginning at most: it bounds the search for the best groups.
const GROUP: usize = 4096;
/// Beginnings whose states are kept at a time.
const KEPT: usize = 16;

/// Consecutive tokens of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The prompt; of a shared beginning, the first of those that share it.
    pub(crate) prompt: usize,
    /// Positions in it.
    pub(crate) rows: Range<usize>,
    /// The piece whose end it goes on from.
    pub(crate) after: Option<usize>,
    /// Pieces that go on from its end.
    pub(crate) continued: usize,
}

impl Piece {
    /// All of a prompt.
    fn whole((prompt, ids): (usize, &Vec<u32>)) -> Self {
        Self { prompt, rows: 0..ids.len(), after: None, continued: 0 }
    }
}

/// Rows that are computed together: pieces, or parts of them. Only the last of a batch may go on in the next.
pub(crate) type Batch = Vec<(usize, Range<usize>)>;

/// The rows of a sweep, in batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub(crate) pieces: Vec<Piece>,
    pub(crate) batches: Vec<Batch>,
    limit: usize,
}

impl Schedule {
    /// Every token of every prompt, prompt by prompt.
    pub fn whole(prompts: &[Vec<u32>], batch_tokens: usize) -> Self {
        Self::shared(prompts, prompts.len(), batch_tokens)
    }

    /// Beginnings that prompts share are computed once, under the name of one of them: the other prompts' rows begin after
    /// it. Every prompt keeps at least its last token. The first `whole` prompts share nothing.
    pub fn shared(prompts: &[Vec<u32>], whole: usize, batch_tokens: usize) -> Self {
        let mut order: Vec<usize> = (whole..prompts.len()).collect();
        order.sort_by_key(|&prompt| &prompts[prompt]);
        let mut pieces: Vec<Piece> = prompts.iter().take(whole).enumerate().map(Piece::whole).collect();
        let (mut waiting, mut tokens): (Vec<(usize, &[usize])>, usize) = (Vec::new(), 0);
        let groups = groups(prompts, &order);
        for (at, (members, shared)) in groups.iter().enumerate() {
            let members = &order[members.clone()];
            waiting.push((*shared, members));
            tokens += shared;
            // Short beginnings fill a batch together.
            if tokens < batch_tokens && waiting.len() < KEPT && at + 1 < groups.len() {
                continue;
            }
            let first = pieces.len();
            let beginnings = waiting.iter().filter(|(shared, _)| *shared > 0);
            pieces.extend(beginnings.map(|&(shared, members)| Piece {
                prompt: members[0],
                rows: 0..shared,
                after: None,
                continued: members.len(),
            }));
            let mut beginning = first;
            for (shared, members) in waiting.drain(..) {
                let after = (shared > 0).then_some(beginning);
                beginning += usize::from(shared > 0);
                pieces.extend(members.iter().map(|&prompt| Piece {
                    prompt,
                    rows: shared..prompts[prompt].len(),
                    after,
                    continued: 0,
                }));
            }
            tokens = 0;
        }
        Self::of(pieces, batch_tokens)
    }

    fn of(pieces: Vec<Piece>, limit: usize) -> Self {
        let limit = limit.max(1);
        let mut batches: Vec<Batch> = Vec::new();
        let mut free = 0;
        // The batch in which each piece ends.
        let mut ends = Vec::with_capacity(pieces.len());
        for (index, piece) in pieces.iter().enumerate() {
            // A state is known after its batch.
            if piece.after.is_some_and(|before| ends[before] + 1 == batches.len()) {
                free = 0;
            }
            let mut done = piece.rows.start;
            while done < piece.rows.end {
                if free == 0 {
                    batches.push(Vec::new());
                    free = limit;
                }
                let count = free.min(piece.rows.end - done);
                if let Some(batch) = batches.last_mut() {
                    batch.push((index, done..done + count));
                }
                (done, free) = (done + count, free - count);
            }
            ends.push(batches.len().saturating_sub(1));
        }
        Self { pieces, batches, limit }
    }

    /// Rows that are computed.
    pub fn rows(&self) -> usize {
        self.pieces.iter().map(|piece| piece.rows.len()).sum()
    }

    /// Prompt and positions of a batch's rows, in order.
    pub(crate) fn names(&self, batch: usize) -> Vec<(usize, Range<usize>)> {
        self.batches[batch].iter().map(|(piece, rows)| (self.pieces[*piece].prompt, rows.clone())).collect()
    }

    /// What memory a sweep needs that has the logits of so many rows in memory at a time.
    pub fn demand(&self, logits: usize) -> Demand {
        let (states, state_tokens) = self.states();
        Demand {
            states: states as u64,
            state_tokens: state_tokens as u64,
            prompt_tokens: self.rows() as u64,
            batch_tokens: self.limit as u64,
            logits: logits as u64,
            decode: false,
        }
    }

    /// The most states that a layer has at a time, and the most tokens in them.
    fn states(&self) -> (usize, usize) {
        let mut kept: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
        let mut most = (0, 0);
        for batch in &self.batches {
            let mut now = (kept.len(), kept.values().map(|(tokens, _)| tokens).sum::<usize>());
            for (piece, rows) in batch {
                now = (now.0 + 1, now.1 + rows.end);
                if let (Some(before), true) = (self.pieces[*piece].after, rows.start == self.pieces[*piece].rows.start)
                {
                    match kept.get_mut(&before) {
                        Some((_, left)) if *left > 1 => *left -= 1,
                        _ => drop(kept.remove(&before)),
                    }
                }
                let piece_is_done = rows.end == self.pieces[*piece].rows.end;
                if piece_is_done && self.pieces[*piece].continued > 0 {
                    kept.insert(*piece, (rows.end, self.pieces[*piece].continued));
                }
            }
            most = (most.0.max(now.0), most.1.max(now.1));
        }
        most
    }
}

/// Cuts prompts in lexicographic order into groups that share what they begin with, so that the fewest rows are left:
/// the best group that ends with each prompt, given the best before it.
fn groups(prompts: &[Vec<u32>], order: &[usize]) -> Vec<(Range<usize>, usize)> {
    let of = |at: usize| &prompts[order[at]];
    // Tokens that each prompt shares with the one before.
    let common: Vec<usize> = (0..order.len())
        .map(|at| if at == 0 { 0 } else { of(at - 1).iter().zip(of(at)).take_while(|(a, b)| a == b).count() })
        .collect();
    // Rows that are saved up to each prompt, and where its group begins and what that shares.
    let mut saved = vec![0; order.len() + 1];
    let mut choice = vec![(0, 0); order.len()];
    for last in 0..order.len() {
        let (mut best, mut chosen) = (saved[last], (last, 0));
        let mut shared = of(last).len().saturating_sub(1);
        for first in (last.saturating_sub(GROUP - 1)..last).rev() {
            shared = shared.min(common[first + 1]).min(of(first).len().saturating_sub(1));
            if shared < WORTH_SHARING {
                break;
            }
            let all = saved[first] + (last - first) * shared;
            if all > best {
                (best, chosen) = (all, (first, shared));
            }
        }
        (saved[last + 1], choice[last]) = (best, chosen);
    }
    let mut groups = Vec::new();
    let mut end = order.len();
    while end > 0 {
        let (first, shared) = choice[end - 1];
        groups.push((first..end, shared));
        end = first;
    }
    groups.reverse();
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(prompt: usize, rows: Range<usize>, after: Option<usize>, continued: usize) -> Piece {
        Piece { prompt, rows, after, continued }
    }

    /// A prompt of a beginning and an end.
    fn prompt(begin: u32, len: usize, end: &[u32]) -> Vec<u32> {
        [vec![begin; len], end.to_vec()].concat()
    }

    #[test]
    fn batches_are_full_and_keep_the_order() {
        let prompts = [vec![0; 5], vec![0; 2], vec![0; 4]];
        let got = Schedule::whole(&prompts, 4);
        assert_eq!(got.batches, [vec![(0, 0..4)], vec![(0, 4..5), (1, 0..2), (2, 0..1)], vec![(2, 1..4)]]);
        assert_eq!(got.rows(), 11);
        assert_eq!(got.demand(3).states, 3);
        assert_eq!(got.demand(3).state_tokens, 5 + 2 + 1);
    }

    #[test]
    fn what_prompts_begin_with_is_computed_once_and_before_them() {
        // Two groups, interleaved, and one alone.
        let prompts = [
            prompt(7, 20, &[1, 2]),
            prompt(9, 10, &[1]),
            prompt(7, 20, &[3]),
            vec![1, 2, 3],
            prompt(9, 10, &[2, 2, 2]),
            prompt(7, 20, &[1, 4]),
        ];
        let got = Schedule::shared(&prompts, 0, 16);
        let want = [
            piece(0, 0..20, None, 3),
            piece(3, 0..3, None, 0),
            piece(0, 20..22, Some(0), 0),
            piece(5, 20..22, Some(0), 0),
            piece(2, 20..21, Some(0), 0),
            piece(1, 0..10, None, 2),
            piece(1, 10..11, Some(5), 0),
            piece(4, 10..13, Some(5), 0),
        ];
        assert_eq!(got.pieces, want);
        // Batches end where a state is needed.
        let batches = [
            vec![(0, 0..16)],
            vec![(0, 16..20), (1, 0..3)],
            vec![(2, 20..22), (3, 20..22), (4, 20..21), (5, 0..10)],
            vec![(6, 10..11), (7, 10..13)],
        ];
        assert_eq!(got.batches, batches);
        assert_eq!(got.rows(), 42);
        // In the third batch: the kept beginning and four more.
        assert_eq!(got.demand(1).states, 5);
        assert_eq!(got.demand(1).state_tokens, 20 + 22 + 22 + 21 + 10);
        assert_eq!(got.names(2), [(0, 20..22), (5, 20..22), (2, 20..21), (1, 0..10)]);
    }

    #[test]
    fn short_beginnings_share_a_batch() {
        let prompts: Vec<Vec<u32>> = (0..6).map(|i| prompt(i / 2, 10, &[i, 50])).collect();
        let got = Schedule::shared(&prompts, 0, 64);
        assert_eq!(got.batches.len(), 2);
        assert_eq!(got.batches[0], [(0, 0..10), (1, 0..10), (2, 0..10)]);
        assert_eq!(got.rows(), 3 * 10 + 6 * 2);
    }

    #[test]
    fn the_longest_beginning_is_not_always_the_best() {
        // Two pairs that share 12, all four 10: together 3 * 10 rows are saved, in pairs 2 * 12.
        let tail = |x: u32, y: u32| prompt(5, 10, &[x, x, y, y, y]);
        let prompts = [tail(1, 1), tail(1, 2), tail(2, 1), tail(2, 2)];
        assert_eq!(groups(&prompts, &[0, 1, 2, 3]), [(0..4, 10)]);
        // With 4 more each the pairs win.
        let tail = |x: u32, y: u32| [prompt(5, 10, &[x; 8]), vec![y]].concat();
        let prompts = [tail(1, 1), tail(1, 2), tail(2, 1), tail(2, 2)];
        assert_eq!(groups(&prompts, &[0, 1, 2, 3]), [(0..2, 18), (2..4, 18)]);
    }

    #[test]
    fn the_first_prompts_may_share_nothing() {
        let prompts = [prompt(7, 20, &[1]), prompt(7, 20, &[2]), prompt(7, 20, &[3]), prompt(7, 20, &[4])];
        let got = Schedule::shared(&prompts, 2, 64);
        let want = [
            piece(0, 0..21, None, 0),
            piece(1, 0..21, None, 0),
            piece(2, 0..20, None, 2),
            piece(2, 20..21, Some(2), 0),
            piece(3, 20..21, Some(2), 0),
        ];
        assert_eq!(got.pieces, want);
    }

    #[test]
    fn a_prompt_keeps_its_last_token() {
        let prompts = [vec![3; 20], vec![3; 20], vec![3; 12]];
        let got = Schedule::shared(&prompts, 0, 100);
        for (prompt, ids) in prompts.iter().enumerate() {
            let last = got.pieces.iter().filter(|p| p.prompt == prompt && p.continued == 0);
            let ends: Vec<_> = last.map(|p| p.rows.clone()).collect();
            assert!(ends.len() == 1 && ends[0].end == ids.len() && !ends[0].is_empty(), "{got:?}");
        }
        assert_eq!(Schedule::shared(&[], 0, 5).batches.len(), 0);
    }
}

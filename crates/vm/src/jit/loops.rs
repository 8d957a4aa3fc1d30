//! Loops that are worth unrolling.
//!
//! A time around an innermost loop takes at most a known amount of fuel. So code that goes around several times pays for all of
//! them in advance, and gets back what it does not use where it turns off the dearest way.

use std::collections::{BTreeMap, BTreeSet};

use super::analysis::{Access, Analysis, Subject};
use crate::interp::{Op, OpCode};

/// Instructions of a loop that is unrolled, all copies together, are at most about this many.
const MOST_INSNS: usize = 96;
/// How often a short loop's instructions are there.
const MOST_COPIES: usize = 4;

/// A loop with one entry, in which no other loop is.
#[derive(Debug, PartialEq)]
pub(super) struct Loop {
    /// How often its instructions are there.
    pub(super) copies: usize,
    /// Fuel that no way exceeds from the beginning of a block until the loop begins anew, by the block's first instruction.
    left: BTreeMap<usize, u64>,
    /// Blocks on ways that take all of that. Others are likely of no weight: a lookup that finds nothing, say.
    dear: BTreeSet<usize>,
}

impl Loop {
    /// First instructions of its blocks.
    pub(super) fn blocks(&self) -> impl Iterator<Item = usize> {
        self.left.keys().copied()
    }

    pub(super) fn contains(&self, at: usize) -> bool {
        self.left.contains_key(&at)
    }

    /// Whether ways that are taken seldom lead through a block.
    pub(super) fn is_aside(&self, at: usize) -> bool {
        !self.dear.contains(&at)
    }

    /// Fuel for all copies, beginning with one of them.
    fn cost_from(&self, copy: usize, header: usize) -> u64 {
        let around = self.left.get(&header).copied().unwrap_or(0);
        around * (self.copies + 1).saturating_sub(copy) as u64
    }

    /// Fuel for all copies.
    pub(super) fn cost(&self, header: usize) -> u64 {
        self.cost_from(1, header)
    }

    /// What comes back of what was paid, on the way from a block of a copy to another block, and what that is charged with then, of `charge`.
    /// A way out of the loop gets everything back.
    pub(super) fn settle(
        &self,
        (copy, header): (usize, usize),
        from: usize,
        to: usize,
        charge: u64,
    ) -> (u64, u64) {
        let left = |at| self.left.get(&at).copied().unwrap_or(0);
        match self.contains(to) {
            true if to == header => (left(from) - charge, 0),
            true => (left(from) - charge - left(to), 0),
            false => (left(from) + self.cost_from(copy + 1, header), charge),
        }
    }
}

/// What a jump is charged with: a jump backwards with what it closes over.
pub(super) fn charge(at: usize, op: Op) -> u64 {
    let target = op.target as usize;
    if target <= at { (at - target) as u64 + 1 } else { 0 }
}

/// The instructions of the block that begins with one.
pub(super) fn insns<'a>(
    subject: &'a Subject<'_>,
    analysis: &'a Analysis,
    start: usize,
) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(start), |at| {
        let next = analysis.fact(*at)?.next;
        let goes_on = !ends(*subject.ops.get(*at)?) && !analysis.leaders.contains(&next);
        goes_on.then_some(next)
    })
}

/// Whether control does not simply go on to the next instruction.
fn ends(op: Op) -> bool {
    op.is_jump() || matches!(op.code, OpCode::Exit | OpCode::Illegal | OpCode::End)
}

/// A block of a function.
#[derive(Default)]
struct Node {
    insns: usize,
    /// Whether it does nothing but compute, and access what is surely there.
    is_plain: bool,
    /// Where control goes, and what that is charged with.
    edges: Vec<(usize, u64)>,
}

/// The blocks of a function by their first instructions.
struct Graph {
    entry: usize,
    nodes: BTreeMap<usize, Node>,
    /// From where control comes to each.
    before: BTreeMap<usize, Vec<usize>>,
}

/// The loops of a function to unroll, by the first instruction of each.
pub(super) fn find(subject: &Subject<'_>, analysis: &Analysis) -> BTreeMap<usize, Loop> {
    let mut nodes = BTreeMap::new();
    let mut before = BTreeMap::<usize, Vec<usize>>::new();
    for &at in &analysis.leaders {
        let node = node(subject, analysis, at);
        for (to, _) in &node.edges {
            before.entry(*to).or_default().push(at);
        }
        nodes.insert(at, node);
    }
    let graph = Graph { entry: subject.entry, nodes, before };
    let headers = graph.headers();
    let loops = headers.iter().map(|(at, tails)| Some((*at, graph.unroll(*at, tails)?)));
    loops.flatten().collect()
}

fn node(subject: &Subject<'_>, analysis: &Analysis, start: usize) -> Node {
    let mut node = Node { is_plain: true, ..Node::default() };
    for at in insns(subject, analysis, start) {
        let (Some(op), Some(fact)) = (subject.ops.get(at), analysis.fact(at)) else { break };
        let is_sure = matches!(fact.access, Access::None | Access::Frame(_) | Access::Proven);
        node.is_plain &= is_sure && !leaves_the_code(op.code);
        node.insns += 1;
        node.edges = match ends(*op) {
            false => vec![(fact.next, 0)],
            true if !op.is_jump() => Vec::new(),
            true => {
                let ways =
                    [(Some(false), (fact.taken, charge(at, *op))), (Some(true), (fact.next, 0))];
                let open = ways.into_iter().filter(|(shut, _)| fact.decided != *shut);
                open.map(|(_, edge)| edge).collect()
            }
        };
    }
    node
}

/// Whether something else runs at an instruction, which may take fuel.
fn leaves_the_code(code: OpCode) -> bool {
    matches!(code, OpCode::CallHelper | OpCode::CallFunction | OpCode::TailCall)
}

impl Graph {
    fn edges(&self, at: usize) -> &[(usize, u64)] {
        self.nodes.get(&at).map_or(&[], |node| &node.edges)
    }

    /// Blocks to which paths come back, each with those that they come back from.
    fn headers(&self) -> BTreeMap<usize, Vec<usize>> {
        let mut headers = BTreeMap::<usize, Vec<usize>>::new();
        let mut seen = BTreeSet::from([self.entry]);
        let (mut path, mut stack) = (seen.clone(), vec![(self.entry, 0)]);
        while let Some((at, edge)) = stack.pop() {
            let Some((to, _)) = self.edges(at).get(edge) else {
                path.remove(&at);
                continue;
            };
            stack.push((at, edge + 1));
            if path.contains(to) {
                headers.entry(*to).or_default().push(at);
            } else if seen.insert(*to) {
                path.insert(*to);
                stack.push((*to, 0));
            }
        }
        headers
    }

    /// How to unroll a loop, if that is worth it.
    fn unroll(&self, header: usize, tails: &[usize]) -> Option<Loop> {
        let mut blocks = BTreeSet::from([header]);
        let (mut wanted, mut insns) = (tails.to_vec(), self.nodes.get(&header)?.insns);
        while let Some(at) = wanted.pop() {
            if blocks.insert(at) {
                insns += self.nodes.get(&at)?.insns;
                wanted.extend(self.before.get(&at).into_iter().flatten());
            }
            if insns > MOST_INSNS {
                return None;
            }
        }
        let copies = MOST_COPIES.min(MOST_INSNS / insns);
        // Who comes into the loop elsewhere comes from the function's entry.
        let has_one_entry = header == self.entry || !blocks.contains(&self.entry);
        let is_plain = |at: &usize| self.nodes.get(at).is_some_and(|node| node.is_plain);
        if copies < 2 || !has_one_entry || !blocks.iter().all(is_plain) {
            return None;
        }
        let left = self.longest(&blocks, header)?;
        let dear = self.dear(&left, header);
        Some(Loop { copies, left, dear })
    }

    /// The most that the ways through the blocks are charged with, from each until they come back to `header`; `None` if
    /// one comes back elsewhere first.
    fn longest(&self, blocks: &BTreeSet<usize>, header: usize) -> Option<BTreeMap<usize, u64>> {
        let mut left = BTreeMap::new();
        let mut waiting: Vec<usize> = blocks.iter().copied().collect();
        while !waiting.is_empty() {
            let before = waiting.len();
            waiting.retain(|at| {
                let inside = self.edges(*at).iter().filter(|(to, _)| blocks.contains(to));
                let costs = inside.map(|(to, charge)| match *to == header {
                    true => Some(*charge),
                    false => left.get(to).map(|left| charge + left),
                });
                let known = costs.collect::<Option<Vec<u64>>>();
                let most = known.and_then(|costs| costs.into_iter().max());
                most.map(|most| left.insert(*at, most)).is_none()
            });
            if waiting.len() == before {
                return None;
            }
        }
        Some(left)
    }

    /// The blocks on the ways that are charged with the most.
    fn dear(&self, left: &BTreeMap<usize, u64>, header: usize) -> BTreeSet<usize> {
        let mut dear = BTreeSet::from([header]);
        let mut wanted = vec![header];
        while let Some(from) = wanted.pop() {
            for (to, charge) in self.edges(from).iter().filter(|(to, _)| *to != header) {
                let is_dear = left.get(to).map(|after| charge + after) == left.get(&from).copied();
                if is_dear && dear.insert(*to) {
                    wanted.push(*to);
                }
            }
        }
        dear
    }
}

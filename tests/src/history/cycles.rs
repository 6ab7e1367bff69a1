//! Dependencies between transactions, and the circles in them.

use std::collections::VecDeque;

use super::Key;

/// Why one transaction comes before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Both wrote, in this order.
    Ww,
    /// The second read what the first wrote.
    Wr,
    /// The first read what was before the second's write.
    Rw,
}

/// One dependency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) kind: Kind,
    pub(super) key: Key,
}

/// The transactions by their place in the history, with the dependencies that leave each.
pub(super) struct Graph {
    leaving: Vec<Vec<Edge>>,
}

impl Graph {
    pub(super) fn new(transactions: usize) -> Graph {
        Graph {
            leaving: vec![Vec::new(); transactions],
        }
    }

    pub(super) fn add(&mut self, from: usize, to: usize, kind: Kind, key: Key) {
        let edge = Edge {
            from,
            to,
            kind,
            key,
        };
        if from != to && !self.leaving[from].contains(&edge) {
            self.leaving[from].push(edge);
        }
    }

    /// For each strongly connected part, and each transaction in it, the shortest circle that
    /// begins with an edge of `first` and goes on with edges of `rest`.
    pub(super) fn circles(
        &self,
        first: impl Fn(&Edge) -> bool,
        rest: impl Fn(&Edge) -> bool,
    ) -> Vec<Vec<Edge>> {
        let parts = self.parts(|edge| first(edge) || rest(edge));
        let mut found = Vec::new();
        for edges in &self.leaving {
            let starts = edges.iter().filter(|edge| first(edge));
            let circles = starts.filter(|edge| parts[edge.from] == parts[edge.to]);
            let circles = circles.filter_map(|edge| {
                let back = self.path(edge.to, edge.from, &rest, &parts)?;
                Some(std::iter::once(*edge).chain(back).collect::<Vec<_>>())
            });
            found.extend(circles.min_by_key(Vec::len));
        }
        found
    }

    /// The shortest path within one part, by breadth.
    fn path(
        &self,
        from: usize,
        to: usize,
        take: impl Fn(&Edge) -> bool,
        parts: &[usize],
    ) -> Option<Vec<Edge>> {
        let mut reached: Vec<Option<Edge>> = vec![None; self.leaving.len()];
        let mut next = VecDeque::from([from]);
        while let Some(at) = next.pop_front() {
            if at == to {
                let mut path = Vec::new();
                let mut at = to;
                while at != from {
                    let edge = reached[at]?;
                    path.push(edge);
                    at = edge.from;
                }
                path.reverse();
                return Some(path);
            }
            for edge in self.leaving[at].iter().filter(|edge| take(edge)) {
                let inside = parts[edge.to] == parts[from] && edge.to != from;
                if inside && reached[edge.to].is_none() {
                    reached[edge.to] = Some(*edge);
                    next.push_back(edge.to);
                }
            }
        }
        None
    }

    /// For each transaction the number of its strongly connected part (Kosaraju's way).
    fn parts(&self, take: impl Fn(&Edge) -> bool) -> Vec<usize> {
        let count = self.leaving.len();
        let mut forward = vec![Vec::new(); count];
        let mut backward = vec![Vec::new(); count];
        for edge in self.leaving.iter().flatten().filter(|edge| take(edge)) {
            forward[edge.from].push(edge.to);
            backward[edge.to].push(edge.from);
        }
        let mut finished = Vec::with_capacity(count);
        let mut visited = vec![false; count];
        for root in 0..count {
            walk(&forward, root, &mut visited, &mut finished);
        }
        let mut parts = vec![0; count];
        let mut visited = vec![false; count];
        for root in finished.into_iter().rev() {
            let mut members = Vec::new();
            walk(&backward, root, &mut visited, &mut members);
            for member in members {
                parts[member] = root;
            }
        }
        parts
    }
}

/// Visits what `root` reaches, depth first; `finished` gets each after all that it reaches.
fn walk(next: &[Vec<usize>], root: usize, visited: &mut [bool], finished: &mut Vec<usize>) {
    if std::mem::replace(&mut visited[root], true) {
        return;
    }
    // Each with the number of its successors that were looked at; no recursion, as a history
    // may be one long chain.
    let mut stack = vec![(root, 0)];
    while let Some((at, looked)) = stack.pop() {
        if let Some(&to) = next[at].get(looked) {
            stack.push((at, looked + 1));
            if !std::mem::replace(&mut visited[to], true) {
                stack.push((to, 0));
            }
        } else {
            finished.push(at);
        }
    }
}

//! What EXPLAIN shows of relations that are moved to shards, and of subqueries that are answered
//! before.

use automator67_planner::{
    Tier,
    plan::{Combine, FetchSource, Gather, Move, Plan, ReductionValues, Scatter, ShardSet, Target},
};

use super::{
    put_actual, readable,
    several::Chosen,
    tree::{Node, Value},
};
use crate::{
    error::Outcome,
    session::{Session, planning::Request, planning::Resolved},
};

impl Session {
    /// A node for each relation that is moved.
    pub(super) async fn moves(
        &mut self,
        way: &Scatter,
        chosen: &Chosen,
        analyzed: bool,
        inner: &Request<'_>,
    ) -> Outcome<Vec<Node>> {
        let mut nodes = Vec::with_capacity(way.moves.len());
        for (index, one) in way.moves.iter().enumerate() {
            let name = &one.fetch.relation.name;
            let to = match way.shards {
                ShardSet::Home => self.shard_name(self.home()),
                ShardSet::All | ShardSet::Keys(_) | ShardSet::Span(_) => destination(one),
            };
            let mut node = Node::new("Move", format!("Move {name} to {to}"))
                .hidden("Relation Name", Value::Text(name.clone()))
                .hidden("To", Value::Text(to));
            if let (Some(rows), None) = (chosen.rows.get(index), &one.query) {
                let rows = Value::Count(rows.max(0.0).round() as u64);
                node.add_inline("Estimated Rows", "estimated rows", rows);
            }
            let done = self.work.moved.get(index).filter(|_| analyzed);
            if let Some(done) = done {
                put_actual(&mut node, done.rows, done.bytes, done.milliseconds);
                if done.spilled > 0 {
                    node.add("Spilled Bytes", Value::Count(done.spilled));
                }
                if !done.reduced_by.is_empty() {
                    node.add("Reduced By", Value::List(done.reduced_by.clone()));
                }
            }
            let reducible = reductions(way, one, inner);
            if !reducible.is_empty() && done.is_none() {
                node.add("Reducible By", Value::List(reducible));
            }
            if let (FetchSource::Shards(set), None) = (&one.fetch.from, &one.query) {
                let from = self.name_shards(set, inner).await?;
                node.add("From", Value::List(from));
            }
            node.add("Into", Value::Text(one.fetch.temp_table.clone()));
            let select = self.sql(&one.fetch.select, inner).await?;
            if let Some(planned) = &one.query {
                let request = Request {
                    planned,
                    text: &select,
                    whole: &select,
                    literals: &[],
                    catalog: inner.catalog.clone(),
                    bound: inner.bound,
                };
                node.children.push(Box::pin(self.subquery(&request)).await?);
            }
            node.add("SQL", Value::Text(select));
            nodes.push(node);
        }
        Ok(nodes)
    }

    /// How a subquery is answered that is moved.
    async fn subquery(&mut self, request: &Request<'_>) -> Outcome<Node> {
        match &request.planned.plan {
            Plan::Scatter(scatter) => self.subquery_of_shards(scatter, request).await,
            Plan::Gather(gather) => Ok(self.gathered_subquery(gather, request)),
            Plan::Single(target) => {
                let shard = match target {
                    Target::Home => Some(self.home()),
                    Target::AnyCopy => Some(self.any_copy()),
                    Target::Key(route) => match self.resolve_surely(route, request).await? {
                        Resolved::One(shard) => Some(shard),
                        Resolved::Several(_) | Resolved::Unknown => None,
                    },
                };
                let name = shard.map_or("one shard".to_owned(), |shard| self.shard_name(shard));
                Ok(Node::new("Automator67 Single", format!("Single on {name}"))
                    .hidden("Shards", Value::List(vec![name])))
            }
            _ => Ok(Node::new("Subquery", "Subquery")),
        }
    }

    async fn subquery_of_shards(
        &mut self,
        scatter: &Scatter,
        request: &Request<'_>,
    ) -> Outcome<Node> {
        let shards = self.name_shards(&scatter.shards, request).await?;
        let distinct = matches!(&scatter.combine, Combine::Rows(rows) if rows.distinct.is_some());
        let word = match scatter.tier() {
            Tier::Single | Tier::Scatter if !distinct => "Scatter",
            _ => "Merge",
        };
        let text = self.shard_text(scatter, request).await?;
        let title = format!("{word} on {}", shards.join(", "));
        let mut node = Node::new(format!("Automator67 {word}"), title)
            .hidden("Shards", Value::List(shards))
            .with("Reason", Value::Text(scatter.reason.clone()))
            .with("SQL", Value::Text(text));
        node.children = self
            .moves(scatter, &Chosen::default(), false, request)
            .await?;
        Ok(node)
    }

    fn gathered_subquery(&self, gather: &Gather, request: &Request<'_>) -> Node {
        let home = self.shard_name(self.home());
        let fetched: Vec<String> = gather
            .fetches
            .iter()
            .map(|fetch| fetch.relation.name.clone())
            .collect();
        Node::new("Automator67 Gather", format!("Gather on {home}"))
            .hidden("Shards", Value::List(vec![home]))
            .with("Reason", Value::Text(gather.reason.clone()))
            .with("Fetches", Value::List(fetched))
            .with("SQL", Value::Text(readable(&gather.statement, request)))
    }
}

fn destination(one: &Move) -> String {
    match &one.route {
        None => "every shard".to_owned(),
        Some(route) => {
            let column = one.fetch.columns.get(route.column);
            format!("the shard of {}", column.map_or("its key", String::as_str))
        }
    }
}

fn reductions(way: &Scatter, one: &Move, request: &Request<'_>) -> Vec<String> {
    let reductions = one.reductions.iter().map(|reduction| {
        let values = match &reduction.values {
            ReductionValues::Moved(other, _) => way
                .moves
                .get(*other)
                .map_or("another relation", |other| &other.fetch.relation.name)
                .to_owned(),
            ReductionValues::Select(select) => readable(select, request),
        };
        format!("{} of {values}", reduction.column)
    });
    reductions.collect()
}

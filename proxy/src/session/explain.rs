//! EXPLAIN: the tier, the shards, the SQL each gets; with ANALYZE also rows, bytes, milliseconds.

use std::time::Instant;

use automator67_planner::plan::{Explain, FetchSource, Gather, Plan, ShardSet, Target};

use super::{
    Session,
    execute::queue,
    gather::Moved,
    planning::{Request, Resolved},
};
use crate::{
    error::{Outcome, Report, sqlstate},
    message, relay,
    telemetry::Tier,
};

impl Session {
    /// Explains, and with ANALYZE runs, a statement.
    pub(super) async fn explain(
        &mut self,
        explain: &Explain,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        let inner = Request {
            planned: &explain.plan,
            text: &explain.statement,
            catalog: request.catalog.clone(),
            ..*request
        };
        match &explain.plan.plan {
            Plan::Single(target) => {
                let shard = match target {
                    Target::Home => Some(self.home()),
                    Target::AnyCopy => Some(self.any_copy()),
                    Target::Key(route) => match self.resolve_surely(route, &inner).await? {
                        Resolved::One(shard) => Some(shard),
                        Resolved::Several(_) | Resolved::Unknown => None,
                    },
                };
                match shard {
                    Some(shard) => self.explain_single(explain, shard, request).await,
                    None => {
                        let planned = self.plan_for_many(&inner)?;
                        if matches!(planned.plan, Plan::Single(Target::Key(_))) {
                            return Err(not_explained());
                        }
                        let again = Explain {
                            plan: Box::new((*planned).clone()),
                            ..explain.clone()
                        };
                        Box::pin(self.explain(&again, request)).await
                    }
                }
            }
            Plan::Gather(gather) => self.explain_gather(explain, gather, request).await,
            other => {
                if explain.analyze {
                    return Err(not_explained());
                }
                let lines = self.describe_plan(other, &inner).await?;
                self.answer(explain, request, &lines);
                Ok(Tier::Proxy)
            }
        }
    }

    async fn explain_single(
        &mut self,
        explain: &Explain,
        shard: u32,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        let name = self.shard_name(shard);
        let text = format!("{}{}", explain.prefix, explain.statement);
        if explain.json {
            // The shard's own document: nothing of ours fits into it.
            self.run_text(request, &text, shard).await?;
            return Ok(Tier::Single);
        }
        let mut lines = vec![format!("Single on {name}")];
        let plan = self.plan_of_shard(shard, &text, request).await?;
        lines.extend(plan.iter().map(|line| format!("  {line}")));
        self.answer(explain, request, &lines);
        Ok(Tier::Single)
    }

    /// EXPLAIN by a shard, with the client's parameters.
    async fn plan_of_shard(
        &mut self,
        shard: u32,
        text: &str,
        request: &Request<'_>,
    ) -> Outcome<Vec<String>> {
        let index = self.link(shard).await?;
        let server = &mut self.links[index].server;
        queue(server, text, request.bound, true);
        let mut lines = Vec::new();
        relay::collect(&mut self.client, server, |_, frame| {
            if frame.tag == b'D' {
                let row = message::data_row(frame.body()).unwrap_or_default();
                let line = row.first().copied().flatten().unwrap_or_default();
                lines.push(String::from_utf8_lossy(line).into_owned());
            }
            Ok(())
        })
        .await?;
        self.hidden_error(index)?;
        Ok(lines)
    }

    async fn explain_gather(
        &mut self,
        explain: &Explain,
        gather: &Gather,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        let home = self.shard_name(self.home());
        let mut lines = vec![
            format!("Gather on {home}"),
            format!("  Reason: {}", gather.reason),
        ];
        if !explain.analyze {
            for fetch in &gather.fetches {
                let shards = self.fetch_shards(&fetch.from, request).await?;
                lines.push(format!("  -> Fetch {} from {shards}", fetch.relation.name));
                lines.push(format!("       SQL: {}", fetch.select));
            }
            lines.push(format!("  -> Run on {home}"));
            lines.push(format!("       SQL: {}", gather.statement));
            self.answer(explain, request, &lines);
            return Ok(Tier::Gather);
        }
        let started = Instant::now();
        self.begin_implicit();
        let moved = self.load_fetches(gather, request).await?;
        for (fetch, moved) in gather.fetches.iter().zip(&moved) {
            lines.push(format!(
                "  -> Fetch {}: {} rows, {} of them moved, {} bytes",
                fetch.relation.name,
                moved.rows,
                moved.rows_from_others(self.home()),
                moved.bytes
            ));
            lines.push(format!("       SQL: {}", fetch.select));
            lines.extend(self.shard_lines(moved));
        }
        let fetched = started.elapsed().as_secs_f64() * 1000.0;
        lines.push(format!("  -> Run on {home}"));
        lines.push(format!("       SQL: {}", gather.statement));
        let text = format!("{}{}", explain.prefix, gather.statement);
        let rows = self.query_rows(self.home(), &text).await?;
        let plan = rows
            .into_iter()
            .filter_map(|row| row.into_iter().next().flatten());
        lines.extend(plan.map(|line| format!("       {line}")));
        lines.push(format!("Fetch Time: {fetched:.3} ms"));
        lines.push(format!(
            "Total Time: {:.3} ms",
            started.elapsed().as_secs_f64() * 1000.0
        ));
        self.end_fetches(gather).await?;
        self.answer(explain, request, &lines);
        Ok(Tier::Gather)
    }

    fn shard_lines(&self, moved: &Moved) -> Vec<String> {
        let line = |(shard, rows, bytes, milliseconds): &(u32, u64, u64, f64)| {
            format!(
                "       {}: {rows} rows, {bytes} bytes, {milliseconds:.3} ms",
                self.shard_name(*shard)
            )
        };
        moved.shards.iter().map(line).collect()
    }

    async fn fetch_shards(&mut self, from: &FetchSource, request: &Request<'_>) -> Outcome<String> {
        match from {
            FetchSource::Proxy(view) => Ok(format!("the proxy ({})", view.name())),
            FetchSource::Shards(set) => self.name_shards(set, request).await,
        }
    }

    async fn name_shards(&mut self, set: &ShardSet, request: &Request<'_>) -> Outcome<String> {
        let shards = self.shard_set(set, request).await?;
        let names: Vec<String> = shards
            .into_iter()
            .map(|shard| self.shard_name(shard))
            .collect();
        Ok(names.join(", "))
    }

    async fn describe_plan(&mut self, plan: &Plan, request: &Request<'_>) -> Outcome<Vec<String>> {
        match plan {
            Plan::Multi(multi) => {
                let shards = self.name_shards(&multi.shards, request).await?;
                let text = multi.sql.as_deref().unwrap_or(request.text);
                Ok(vec![format!("Multi on {shards}"), format!("  SQL: {text}")])
            }
            Plan::Insert(insert) => Ok(vec![
                match insert.key_type {
                    Some(_) => "Insert split by shard key".to_owned(),
                    None => "Insert into every copy".to_owned(),
                },
                format!("  Rows: {}", insert.rows.len()),
            ]),
            Plan::InsertSelect(insert) => Ok(vec![
                format!(
                    "Insert into {} from a query on {}",
                    insert.table.name,
                    self.shard_name(self.home())
                ),
                format!("  SQL: {}", insert.query_sql),
            ]),
            _ => Err(not_explained()),
        }
    }

    fn shard_name(&self, shard: u32) -> String {
        self.process
            .shard(shard)
            .map_or_else(|_| shard.to_string(), |shard| shard.settings.name.clone())
    }

    fn answer(&mut self, explain: &Explain, request: &Request<'_>, lines: &[String]) {
        let output = self.client.output();
        let oid = if explain.json { 114 } else { 25 };
        if request.bound.is_none() {
            message::put_row_description(output, &[("QUERY PLAN", oid, -1)]);
        }
        if explain.json {
            let quoted: Vec<String> = lines.iter().map(|line| json_string(line)).collect();
            let document = format!("[{{\"Automator67\": [{}]}}]", quoted.join(", "));
            message::put_text_row(output, &[Some(&document)]);
        } else {
            for line in lines {
                message::put_text_row(output, &[Some(line)]);
            }
        }
        message::put_command_complete(output, "EXPLAIN");
    }
}

fn json_string(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            control if control < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

fn not_explained() -> crate::error::Failure {
    Report::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        "EXPLAIN of this statement over several shards is not supported",
    )
    .hint("EXPLAIN without ANALYZE and without parameters, or EXPLAIN its SELECT part.")
    .into()
}

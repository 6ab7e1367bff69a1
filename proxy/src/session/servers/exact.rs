//! Whether a value that one server writes as text is the same value where another reads it.
//!
//! Values travel in binary where they can. Where they travel as text, the session's settings are in
//! force, because what the client has written may depend on them: `extra_float_digits` below 1 rounds
//! numbers, and every DateStyle but ISO names zones by abbreviations, which mean several zones.

use automator67_planner::plan::Fetch;

use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    guc::{quote_identifier, quote_literal},
    session::Session,
};

/// What the types of values are made of, and whether these settings lose something of that. float4,
/// float8, path, polygon and circle (`pg_type.dat`) are made of floating-point numbers, the other
/// geometric types of those; what is in a record is not known.
const LOSES: &str = "
    with recursive made_of (oid) as (
        select seed.oid from (SEEDS) seed (oid)
        union
        select part.oid from made_of m
        join pg_catalog.pg_type t on t.oid = m.oid
        cross join lateral (
            select t.typelem union all select t.typbasetype
            union all select a.atttypid from pg_catalog.pg_attribute a
                where t.typrelid <> 0 and a.attrelid = t.typrelid and a.attnum > 0
                    and not a.attisdropped
            union all select r.rngsubtype from pg_catalog.pg_range r
                where m.oid in (r.rngtypid, r.rngmultitypid)
        ) part (oid)
        where part.oid <> 0
    )
    select pg_catalog.bool_or(case
        when oid in (700, 701, 602, 604, 718)
            then pg_catalog.current_setting('extra_float_digits')::pg_catalog.int4 < 1
        when oid = 1184 then pg_catalog.current_setting('DateStyle') !~ '^ISO'
        else oid = 2249
    end)
    from made_of";

impl Session {
    /// Text loses nothing of any value.
    pub(in crate::session) async fn text_is_exact(&mut self) -> Outcome<bool> {
        let text = "SELECT pg_catalog.current_setting('extra_float_digits')::pg_catalog.int4 >= 1 \
                    AND pg_catalog.current_setting('DateStyle') ~ '^ISO'";
        let exact = self.query_value(self.home(), text).await?;
        Ok(exact.as_deref() == Some("t"))
    }

    /// Values of one of these types would not be the same where they are read.
    pub(in crate::session) async fn text_loses(&mut self, types: &[u32]) -> Outcome<bool> {
        let types: Vec<String> = types.iter().map(u32::to_string).collect();
        let seeds = format!(
            "select pg_catalog.unnest(array[{}]::pg_catalog.oid[])",
            types.join(", ")
        );
        self.loses(&seeds).await
    }

    /// The same of what is fetched.
    pub(in crate::session) async fn refuse_lossy(&mut self, fetch: &Fetch) -> Outcome {
        if fetch.binary {
            return Ok(());
        }
        let relation = format!(
            "{}.{}",
            quote_identifier(&fetch.relation.schema),
            quote_identifier(&fetch.relation.name)
        );
        let columns: Vec<String> = fetch
            .columns
            .iter()
            .map(|name| quote_literal(name))
            .collect();
        let seeds = format!(
            "select atttypid from pg_catalog.pg_attribute \
             where attrelid = {}::pg_catalog.regclass and attname = any (array[{}]::pg_catalog.name[])",
            quote_literal(&relation),
            columns.join(", ")
        );
        match self.loses(&seeds).await? {
            true => Err(lossy_text()),
            false => Ok(()),
        }
    }

    async fn loses(&mut self, seeds: &str) -> Outcome<bool> {
        if self.text_is_exact().await? {
            return Ok(false);
        }
        let text = LOSES.replace("SEEDS", seeds);
        let loses = self.query_value(self.home(), &text).await?;
        Ok(loses.as_deref() == Some("t"))
    }
}

/// Values of such types would not be the same where they are read.
pub fn lossy_text() -> Failure {
    Report::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        "values of several shards cannot be brought together under these settings",
    )
    .detail(
        "They travel as text, which extra_float_digits below 1 rounds, and in which every DateStyle \
         but ISO names time zones ambiguously.",
    )
    .hint("Set DateStyle to ISO and extra_float_digits to 1, and format values with to_char().")
    .into()
}

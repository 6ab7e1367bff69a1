//! The first words to a client: ParameterStatus, the cancel key, ReadyForQuery; and the settings that
//! its session begins with, those of its role and database first, then the startup packet's.
//!
//! A server gives a session the settings of its role and database when that logs in. Connections here
//! have logged in at other times than their clients, so each session makes them as its own.

use std::{collections::HashMap, sync::Arc};

use super::{
    Session,
    setting::{OWN, check_encoding},
};
use crate::{
    error::Outcome,
    guc::{self, SettingMap},
    message,
    process::lock,
    server::{Answer, relay},
};

/// Greetings kept per thread.
const GREETINGS_MAX: usize = 1000;

/// Settings of the user and the database that a user may make, the more special ones first.
const DEFAULTS: &str = "select distinct on (name) name, value
    from (select pg_catalog.lower(pg_catalog.split_part(one, '=', 1)) as name,
            pg_catalog.substr(one, pg_catalog.strpos(one, '=') + 1) as value,
            2 * (s.setrole <> 0)::int + (s.setdatabase <> 0)::int as weight
        from pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) one
        where s.setdatabase in (0, (select oid from pg_catalog.pg_database
                where datname = pg_catalog.current_database()))
            and s.setrole in (0, (select oid from pg_catalog.pg_roles
                where rolname = session_user))) made
    where not exists (select from pg_catalog.pg_settings known
        where pg_catalog.lower(known.name) = made.name and known.context <> 'user')
    order by name, weight desc";

/// Names and values.
type Values = Vec<(String, String)>;

/// What clients of one kind are greeted with.
#[derive(Debug, Default)]
pub struct Greeting {
    /// ParameterStatus.
    statuses: Values,
    /// Settings of the role and the database.
    defaults: Values,
}

/// Greetings of a thread, asked for once per kind of client.
#[derive(Default)]
pub struct Greetings {
    by_kind: HashMap<String, Arc<Greeting>>,
    /// Of each user, as far as known.
    defaults: HashMap<String, Values>,
}

impl Greetings {
    /// Notes a user's defaults. True: they are others than before.
    fn note_defaults(&mut self, user: &str, defaults: &Values) -> bool {
        let before = self.defaults.insert(user.to_owned(), defaults.clone());
        before.is_some_and(|before| before != *defaults)
    }

    fn put(&mut self, kind: String, greeting: Arc<Greeting>) {
        if self.by_kind.len() >= GREETINGS_MAX {
            self.by_kind.clear();
        }
        self.by_kind.insert(kind, greeting);
    }
}

impl Session {
    /// Makes the settings that the session begins with, and greets the client.
    pub(super) async fn greet(&mut self, settings: Values) -> Outcome {
        for (name, value) in &settings {
            check_encoding(name, Some(value))?;
        }
        let greeting = self.greeting(&settings).await?;
        for (name, value) in &greeting.defaults {
            let replay = guc::config_statement(name, value, "false");
            self.set_own_or_map(name, &replay, Some(value))?;
        }
        for (name, value) in &settings {
            self.set_own_or_map(name, &guc::set_statement(name, value), Some(value))?;
        }
        self.settings.initial = self.settings.map.clone();
        for name in self.settings.initial.clone().names() {
            self.note_placeholder(name);
        }
        for (name, value) in &greeting.statuses {
            message::put_parameter_status(self.client.output(), name, value);
        }
        let (pid, secret) = (self.card.pid, self.card.secret);
        message::framed(self.client.output(), b'K', |body| {
            use bytes::BufMut;
            body.put_i32(pid);
            body.put_i32(secret);
        });
        self.ready().await
    }

    /// What a server says to a client with these settings. A change of the schema, which may be one of
    /// a role's settings, has it asked again.
    async fn greeting(&mut self, settings: &Values) -> Outcome<Arc<Greeting>> {
        let epoch = self.catalog().epoch;
        let kind = format!("{epoch}\0{}\0{settings:?}", self.user.name);
        if let Some(known) = lock(&self.thread.greetings).by_kind.get(&kind) {
            return Ok(known.clone());
        }
        let shard = self.any_copy();
        let index = self.link_with(shard, SettingMap::default()).await?;
        let defaults = self.defaults_on(index).await?;
        let user = self.user.name.clone();
        if lock(&self.thread.greetings).note_defaults(&user, &defaults) {
            // What has logged in before begins with other settings.
            self.thread.pools.retire(&user);
            self.links.remove(index).server.close();
        }
        let index = self.link_with(shard, SettingMap::default()).await?;
        let statuses = self.statuses_on(index, &defaults, settings).await?;
        let greeting = Arc::new(Greeting { statuses, defaults });
        lock(&self.thread.greetings).put(kind, greeting.clone());
        Ok(greeting)
    }

    async fn defaults_on(&mut self, index: usize) -> Outcome<Values> {
        let server = &mut self.links[index].server;
        server.query(DEFAULTS, Answer::Shown);
        let rows = self.text_rows(index).await?;
        let pairs = rows.into_iter().filter_map(|row| {
            let mut values = row.into_iter();
            Some((values.next()??, values.next()??))
        });
        Ok(pairs.collect())
    }

    /// Makes the settings on a connection; what the server reports then.
    async fn statuses_on(
        &mut self,
        index: usize,
        defaults: &Values,
        settings: &Values,
    ) -> Outcome<Values> {
        let mut wanted = SettingMap::default();
        for (name, value) in defaults.iter().filter(|(name, _)| !name.starts_with(OWN)) {
            wanted.set(name, value, &guc::config_statement(name, value, "false"));
        }
        for (name, value) in settings.iter().filter(|(name, _)| !name.starts_with(OWN)) {
            wanted.set(name, value, &guc::set_statement(name, value));
        }
        let server = &mut self.links[index].server;
        let mut statuses = server.parameters.clone();
        let text = server.settings.difference(&wanted);
        server.settings = wanted;
        if !text.is_empty() {
            server.query(&text, Answer::Shown);
            relay::collect(&mut self.client, server, |_, frame| {
                if frame.tag == b'S' {
                    let mut reader = message::Reader::new(frame.body());
                    let (name, value) = (reader.string()?.to_owned(), reader.string()?.to_owned());
                    statuses.retain(|(known, _)| *known != name);
                    statuses.push((name, value));
                }
                Ok(())
            })
            .await
            .inspect_err(|_| self.links[index].server.status = b'E')?;
        }
        // What our own login to the server said is not what the client or its role said.
        let said = |(name, _): &(String, String)| name == "application_name";
        if !settings.iter().chain(defaults).any(said) {
            statuses.retain(|one| !said(one));
            statuses.push(("application_name".to_owned(), String::new()));
        }
        Ok(statuses)
    }
}

//! Custom settings (`app.user`), which a server session knows from the first time on that one is made
//! there: taken back it is empty, where it was unknown before (`assignable_custom_variable_name` and
//! `add_placeholder_variable` in Postgres's `guc.c`). Server connections are shared, so what a session
//! that asks for a setting sees is arranged to be what it has made itself.

use super::Session;
use crate::{
    error::Outcome,
    guc,
    server::{Answer, relay},
};

impl Session {
    /// The session has made a setting.
    pub(super) fn note_placeholder(&mut self, name: &str) {
        if !name.contains('.') {
            return;
        }
        let name = name.to_lowercase();
        for link in &mut self.links {
            link.server
                .placeholders
                .entry(name.clone())
                .or_insert(false);
        }
        self.placeholders.insert(name);
    }

    /// Another connection in the place of one that knows settings of other sessions. What those know
    /// that cannot be given back, every shard knows from now on: not one that was `borrowed` just now.
    pub(super) async fn without_strange_settings(
        &mut self,
        mut index: usize,
        borrowed: bool,
    ) -> Outcome<usize> {
        for (position, link) in self.links.iter().enumerate() {
            let stays = link.begun || link.is_pinned();
            if stays && !(borrowed && position == index) {
                let known = link.server.placeholders.keys();
                self.placeholders.extend(known.cloned());
            }
        }
        while self.knows_strange_settings(index) {
            let shard = self.links[index].server.shard_id();
            self.links.remove(index).server.close();
            index = self.borrow(shard).await?;
        }
        Ok(index)
    }

    /// Gives up connections that know settings of other sessions, and that nothing is on yet.
    pub(super) fn leave_strange_links(&mut self) {
        for index in (0..self.links.len()).rev() {
            let link = &self.links[index];
            let stays = link.begun || link.is_pinned() || !link.server.is_answered();
            if !stays && self.knows_strange_settings(index) {
                self.links.remove(index).server.close();
            }
        }
    }

    fn knows_strange_settings(&self, index: usize) -> bool {
        let mut known = self.links[index].server.placeholders.keys();
        known.any(|name| !self.placeholders.contains(name))
    }

    /// A connection comes to know the session's own settings: at once where the statement may ask for
    /// one.
    pub(super) async fn know_own_settings(&mut self, index: usize) -> Outcome {
        let known = &mut self.links[index].server.placeholders;
        let unknown = self.placeholders.iter();
        let unknown: Vec<&String> = unknown.filter(|name| !known.contains_key(*name)).collect();
        for name in unknown {
            known.insert(name.clone(), false);
        }
        if !self.residue.reads_setting {
            return Ok(());
        }
        let own = &self.placeholders;
        let doubtful: Vec<String> = known
            .iter_mut()
            .filter(|(name, sure)| !**sure && own.contains(*name))
            .map(|(name, sure)| {
                *sure = true;
                guc::quote_literal(name)
            })
            .collect();
        if doubtful.is_empty() {
            return Ok(());
        }
        let text = format!(
            "SELECT pg_catalog.set_config(n, '', false) \
             FROM pg_catalog.unnest(ARRAY[{}]::pg_catalog.text[]) n \
             WHERE pg_catalog.current_setting(n, true) IS NULL",
            doubtful.join(", ")
        );
        let server = &mut self.links[index].server;
        server.query(&text, Answer::Hidden);
        relay::exchange(&mut self.client, server).await?;
        self.hidden_error(index)
    }
}

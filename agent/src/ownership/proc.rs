//! The source that needs no privilege: `/proc`, walked from the supervisor down.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::time::Instant;

use super::keep::Keep;
use super::{Census, Holder, Lineage, Question, Scope, Source};
use crate::pipe::{End, Relation};
use crate::process::describe::{self, describe};
use crate::process::stat::Stat;
use crate::process::table::{Found, Hold, Sought, look};
use crate::process::{children, is_denied};

/// Finds holders by reading descriptor tables: of the lineage, or of every process.
pub struct Proc {
    lineage: Lineage,
    keep: Keep,
}

impl Proc {
    /// A source for the run of that lineage.
    #[must_use]
    pub fn new(lineage: Lineage, keep: Keep) -> Proc {
        Proc { lineage, keep }
    }

    /// The supervisor.
    pub(super) fn root(&self) -> i32 {
        self.lineage.root
    }

    /// A holder, as it is described now.
    pub(super) fn holder(&self, stat: &Stat, relation: Relation, holds: Vec<Hold>) -> io::Result<Holder> {
        let description = describe(stat.id.pid)?;
        Ok(Holder {
            id: stat.id,
            relation,
            escaped: !matches!(relation, Relation::Foreign | Relation::Adopted) && stat.pgid != self.lineage.home,
            kept: self.keep.matches(stat.id.pid, &description.comm),
            ignores_sigpipe: describe::ignores_sigpipe(stat.id.pid),
            holds,
            description,
        })
    }

    /// The lineage's live processes, parents first.
    pub(super) fn members(&self, except: &HashSet<i32>) -> io::Result<Vec<Stat>> {
        let pids = children::descendants(self.lineage.root, except)?;
        let mut members: Vec<Stat> =
            pids.into_iter().filter_map(|pid| Stat::read(pid).ok()).filter(|stat| !stat.is_dead()).collect();
        self.mark_who_is_at_work(&mut members);
        Ok(members)
    }

    /// A member of the home group is at work if any of its threads is, not only its first.
    pub(super) fn mark_who_is_at_work(&self, members: &mut [Stat]) {
        for stat in members.iter_mut().filter(|stat| stat.pgid == self.lineage.home) {
            if stat.is_ready_to_run() {
                stat.state = 'R';
            }
        }
    }

    fn look_at_member(&self, stat: &Stat, sought: &Sought) -> io::Result<Option<Holder>> {
        match look(stat.id.pid, sought) {
            Ok(Found { holds, in_flight }) => {
                let writing = writing(holds);
                if !writing.is_empty() {
                    self.holder(stat, Relation::Lineage, writing).map(Some)
                } else if in_flight > 0 {
                    self.holder(stat, Relation::Suspect, Vec::new()).map(Some)
                } else {
                    Ok(None)
                }
            }
            // Who is on its way out is not opaque: the next look finds it gone.
            Err(error) if is_denied(&error) && Stat::read(stat.id.pid).is_ok_and(|stat| stat.exiting) => Ok(None),
            Err(error) if is_denied(&error) => self.holder(stat, Relation::Opaque, Vec::new()).map(Some),
            Err(error) => Err(error),
        }
    }
}

impl Source for Proc {
    fn holders(&mut self, question: &Question) -> io::Result<Census> {
        let members = self.members(&question.except)?;
        let mut census =
            Census { scope: question.scope, holders: Vec::new(), members: Vec::new(), unseen: 0, complete: true };
        let sought = Sought { pipes: question.pipes.clone(), hidden: question.scope != Scope::Lineage };
        for stat in &members {
            if Instant::now() >= question.deadline {
                census.complete = false;
                break;
            }
            // What ended while we looked holds nothing any more.
            if let Ok(Some(holder)) = self.look_at_member(stat, &sought) {
                census.holders.push(holder);
            }
        }
        if question.scope == Scope::Machine && census.complete {
            self.look_around(question, &members, &mut census)?;
        }
        census.members = members;
        Ok(census)
    }
}

impl Proc {
    /// Adds the holders outside the lineage.
    fn look_around(&self, question: &Question, members: &[Stat], census: &mut Census) -> io::Result<()> {
        let known: HashSet<i32> = members.iter().map(|stat| stat.id.pid).chain([self.lineage.root]).collect();
        let sought = Sought { pipes: question.pipes.clone(), hidden: false };
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            if known.contains(&pid) {
                continue;
            }
            if Instant::now() >= question.deadline {
                census.complete = false;
                break;
            }
            match look(pid, &sought) {
                Ok(found) => {
                    let writing = writing(found.holds);
                    if !writing.is_empty()
                        && let Ok(stat) = Stat::read(pid)
                        && let Ok(holder) = self.holder(&stat, self.relation(&stat), writing)
                    {
                        census.holders.push(holder);
                    }
                }
                Err(error) if is_denied(&error) => census.unseen += 1,
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// What a process is that the walk over the lineage did not show. It can be lineage all the same:
    /// born since.
    pub(super) fn relation(&self, stat: &Stat) -> Relation {
        if children::descends_from(stat.id.pid, self.lineage.root) {
            Relation::Lineage
        } else if self.lineage.adopter == Some(stat.ppid) {
            Relation::Adopted
        } else {
            Relation::Foreign
        }
    }
}

fn writing(holds: Vec<Hold>) -> Vec<Hold> {
    holds.into_iter().filter(|hold| hold.end != End::Read).collect()
}

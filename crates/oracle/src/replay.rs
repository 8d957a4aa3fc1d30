//! Recorded answers of the kernel, compared with what our crates answer here.

use std::fmt;

use crate::corpus::Corpus;
use crate::create::{MapCreate, Request};
use crate::ops::{Elements as _, Op, Output, to_text};
use crate::our_program::Interpreter;
use crate::programs::{self, QA, Style, on_cpu_0};
use crate::vectors::{Fact, Vectors};
use crate::{corpus, gen_lookup, ours, possible_cpus};

/// Why a replay ended.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error(transparent)]
    Corpus(#[from] corpus::Error),
    #[error("line {0}: not a question: {1}")]
    Question(usize, String),
    #[error("line {0}: an operation, but no map was created before")]
    NoMap(usize),
    #[error("`{0}` is not recorded here: was the question changed without recording again?")]
    Unrecorded(String),
    #[error(transparent)]
    Cpu(#[from] programs::NoCpu0),
    #[error("line {line}: {question}\nkernel: {kernel}\nours:   {ours}")]
    Mismatch { line: usize, question: String, kernel: String, ours: String },
}

/// What a replay did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Answers that were compared.
    pub compared: usize,
    /// Answers that were not, because they depend on CPUs that this process does not have.
    pub skipped: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answers compared", self.compared)?;
        if self.skipped != 0 {
            write!(f, ", {} SKIPPED: they depend on CPUs that are not here", self.skipped)?;
        }
        Ok(())
    }
}

impl Fact {
    fn ask<T>(&self, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, Error> {
        parse(&self.question).ok_or_else(|| Error::Question(self.line, self.question.clone()))
    }

    fn expect_qa(&self, ours: QA) -> Result<(), Error> {
        if ours.question != self.question {
            return Err(Error::Unrecorded(ours.question));
        }
        self.expect(ours.answer)
    }

    fn expect(&self, ours: String) -> Result<(), Error> {
        if ours == self.answer {
            return Ok(());
        }
        Err(Error::Mismatch {
            line: self.line,
            question: self.question.clone(),
            kernel: self.answer.clone(),
            ours,
        })
    }
}

/// Replays creations and operations. On a machine with more CPUs than the recording one, only the
/// values of the CPUs that both have are compared.
///
/// # Errors
/// The first difference, or a line that is not understood.
pub fn ops(vectors: &Vectors) -> Result<Summary, Error> {
    let (recorded, here) = (vectors.possible_cpus, possible_cpus());
    let mut summary = Summary::default();
    let mut map = None;
    // Bytes of a recorded value, or `None` where there are more of them than a value has here.
    let mut value_len = None;
    for fact in &vectors.facts {
        if let Some(request) = Request::parse(&fact.question) {
            let answer = ours::create(&request, recorded);
            fact.expect(to_text(&answer.as_ref().map(|(_, created)| *created).map_err(|e| *e)))?;
            map = answer.ok().map(|(map, _)| map);
            let len = request.create.value_len(recorded);
            value_len = Some(len).filter(|len| *len <= request.create.value_len(here));
            summary.compared += 1;
            continue;
        }
        let op = fact.ask(Op::parse)?;
        let map = map.as_ref().ok_or(Error::NoMap(fact.line))?;
        let mut answer = map.apply(&op);
        if let Ok(Output::Value(value)) = &mut answer {
            let Some(len) = value_len else {
                summary.skipped += 1;
                continue;
            };
            value.truncate(len);
        }
        fact.expect(to_text(&answer))?;
        summary.compared += 1;
    }
    Ok(summary)
}

/// Replays inlined lookups.
///
/// # Errors
/// The first difference, or a line that is not understood.
pub fn lookups(vectors: &Vectors) -> Result<Summary, Error> {
    for fact in &vectors.facts {
        let request = fact.ask(Request::parse)?;
        let rules = gen_lookup::ours(&request).map_err(|errno| errno.to_string());
        for answer in [rules, gen_lookup::ours_in_a_program(&request)] {
            let insns = answer.map(|insns| gen_lookup::to_text(insns.as_deref()));
            fact.expect(insns.unwrap_or_else(|why| why))?;
        }
    }
    Ok(Summary { compared: vectors.facts.len(), skipped: 0 })
}

/// Replays the runs of compiled programs. On a machine with fewer CPUs than the recording one, those of
/// objects with values per CPU are left out.
///
/// # Errors
/// The first difference, or more or fewer answers than recorded.
pub fn programs(vectors: &Vectors, corpus: &Corpus) -> Result<Summary, Error> {
    let mut summary = Summary::default();
    if on_cpu_0(|| ()).is_err() {
        return Ok(Summary { skipped: vectors.facts.len(), ..summary });
    }
    let style = Style { cpus: vectors.possible_cpus, brief: true };
    let mut facts = vectors.facts.iter();
    for run in &corpus.runs {
        let has_percpu = corpus.objects.get(&run.object).is_some_and(|object| {
            object.maps().iter().any(|spec| spec.attr.map_type.0 == MapCreate::PERCPU_ARRAY)
        });
        let skip = has_percpu && possible_cpus() < vectors.possible_cpus;
        for qa in on_cpu_0(|| programs::ask(&Interpreter, corpus, run, style))? {
            let fact = facts.next().ok_or_else(|| Error::Unrecorded(qa.question.clone()))?;
            if skip {
                summary.skipped += 1;
                continue;
            }
            fact.expect_qa(qa)?;
            summary.compared += 1;
        }
    }
    match facts.next() {
        Some(fact) => Err(Error::Question(fact.line, fact.question.clone())),
        None => Ok(summary),
    }
}

/// Replays random programs. On a machine with fewer CPUs than the recording one, those that call
/// helpers are left out.
///
/// # Errors
/// The first difference, or a line that is not understood.
pub fn random_programs(vectors: &Vectors) -> Result<Summary, Error> {
    let mut summary = Summary::default();
    if on_cpu_0(|| ()).is_err() {
        return Ok(Summary { skipped: vectors.facts.len(), ..summary });
    }
    let style = Style { cpus: vectors.possible_cpus, brief: true };
    for fact in &vectors.facts {
        let (kind, seed) = fact.ask(|question| {
            let mut words = question.split(' ');
            let name = words.next()?;
            let kind = *programs::Kind::ALL.iter().find(|kind| kind.name == name)?;
            Some((kind, words.next()?.parse().ok()?))
        })?;
        if kind.name == "helpers" && possible_cpus() < vectors.possible_cpus {
            summary.skipped += 1;
            continue;
        }
        let ask = || programs::ask_random(&Interpreter, kind, seed, style);
        fact.expect_qa(on_cpu_0(ask)?)?;
        summary.compared += 1;
    }
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::value;
    use crate::text;

    /// A PERCPU_ARRAY as a machine with this many CPUs would have answered about it.
    fn recorded_with(possible_cpus: usize) -> Vectors {
        let memlock = 312 + 8 + 8 * possible_cpus;
        let value = text::bytes(&value(1, 8 * possible_cpus));
        let facts = [
            (
                "create trusted map_type=6 key_size=4 value_size=4 max_entries=1",
                format!("flags 0x0 memlock {memlock}"),
            ),
            ("update 0 0x0 1", "ok".into()),
            ("lookup 0 0x0", value),
            ("lookup 1 0x0", "ENOENT".into()),
        ];
        let fact = |(line, (question, answer)): (usize, (&str, String))| Fact {
            line,
            question: question.into(),
            answer,
        };
        Vectors { possible_cpus, facts: facts.into_iter().enumerate().map(fact).collect() }
    }

    #[test]
    fn values_of_fewer_cpus_are_compared_as_far_as_they_go() {
        let summary = ops(&recorded_with(1)).unwrap();
        assert_eq!(summary, Summary { compared: 4, skipped: 0 });
    }

    #[test]
    fn values_of_more_cpus_are_counted_as_skipped() {
        let summary = ops(&recorded_with(100_000)).unwrap();
        assert_eq!(summary, Summary { compared: 3, skipped: 1 });
        assert!(summary.to_string().contains("1 SKIPPED"));
    }

    #[test]
    fn a_different_answer_names_its_line() {
        let mut vectors = recorded_with(1);
        vectors.facts[3].answer = "EINVAL".into();
        let error = ops(&vectors).unwrap_err().to_string();
        assert_eq!(error, "line 3: lookup 1 0x0\nkernel: EINVAL\nours:   ENOENT");
    }
}

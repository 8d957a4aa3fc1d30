//! Recorded answers of the kernel, compared with what our crates answer here.

use std::fmt;

use crate::corpus::Corpus;
use crate::create::MapCreate;
use crate::gen_lookup::Question;
use crate::kernel::Unavailable;
use crate::ops::{Case, Output, Step, to_text};
use crate::our_program::{Form, OurEngine};
use crate::ours::{self, OurSide};
use crate::programs::{self, QA, Style, on_cpu_0};
use crate::record::{case_answer, case_question};
use crate::request::{Creator, Request};
use crate::subject::{Subject, answers};
use crate::vectors::{Fact, Vectors};
use crate::{corpus, gen_lookup, possible_cpus, xlated};

/// What runs programs, with maps like those that the kernel was asked about.
const fn with(form: Form) -> OurEngine {
    OurEngine { form, creator: Creator::Trusted }
}

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
    Ours(#[from] ours::Error),
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error(transparent)]
    Cpu(#[from] programs::NoCpu),
    #[error("line {line}: {question}\nkernel: {kernel}\nours:   {ours}")]
    Mismatch { line: usize, question: String, kernel: String, ours: String },
}

/// Why an answer cannot be compared on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It depends on CPUs that are not here.
    Cpus,
    /// It depends on a control group.
    Cgroup,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpus => "they depend on CPUs that are not here",
            Self::Cgroup => "they need a cgroup v2 hierarchy, and none is mounted",
        })
    }
}

/// What a replay did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Answers that were compared.
    pub compared: usize,
    /// Answers that were not.
    pub skipped: usize,
    /// Why the last of them was not.
    pub reason: Option<Reason>,
}

impl Summary {
    /// Counts an answer: as skipped where there is a reason, and else as compared.
    fn count(
        &mut self,
        reason: Option<Reason>,
        compare: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        if reason.is_some() {
            self.skipped += 1;
            self.reason = reason;
        } else {
            compare()?;
            self.compared += 1;
        }
        Ok(())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answers compared", self.compared)?;
        self.reason.iter().try_for_each(|why| write!(f, ", {} SKIPPED: {why}", self.skipped))
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
    let recorded = vectors.possible_cpus;
    let side = OurSide::new(recorded)?;
    let mut summary = Summary::default();
    let mut subject = None;
    // What keeps the answers to operations on the map that was created last from being compared.
    let mut reason = None;
    for fact in &vectors.facts {
        if let Some(request) = Request::parse(&fact.question) {
            let created = Subject::new(&side, &request, recorded)?;
            fact.expect(to_text(&created.as_ref().map(|(_, c)| *c).map_err(|errno| *errno)))?;
            subject = created.ok().map(|(subject, _)| subject);
            reason = None;
            summary.compared += 1;
            continue;
        }
        let step = fact.ask(Step::parse)?;
        let subject = subject.as_mut().ok_or(Error::NoMap(fact.line))?;
        if step.is_missing() {
            reason = Some(Reason::Cgroup);
        }
        let answer = subject.apply(&step);
        let reason = match answer {
            Ok(Output::Value(_)) if !subject.has_values_of(recorded) => Some(Reason::Cpus),
            _ => reason,
        };
        summary.count(reason, || fact.expect(to_text(&answer)))?;
    }
    Ok(summary)
}

/// Replays cases of which only digests are recorded.
///
/// # Errors
/// The first difference, or a line that is not understood.
pub fn cases(vectors: &Vectors) -> Result<Summary, Error> {
    let recorded = vectors.possible_cpus;
    let side = OurSide::new(recorded)?;
    let mut summary = Summary::default();
    for fact in &vectors.facts {
        let seed = fact.ask(|question| question.split(' ').next()?.parse().ok())?;
        let case = Case::random(seed);
        let reason = if case.is_missing() {
            Some(Reason::Cgroup)
        } else {
            let create = &case.request.create;
            (create.value_len(possible_cpus()) < create.value_len(recorded)).then_some(Reason::Cpus)
        };
        summary.count(reason, || {
            let answer = case_answer(&answers(&side, &case, recorded)?);
            fact.expect_qa(QA { question: case_question(seed, &case), answer })
        })?;
    }
    Ok(summary)
}

/// Replays inlined lookups and tail calls.
///
/// # Errors
/// The first difference, or a line that is not understood.
pub fn lookups(vectors: &Vectors) -> Result<Summary, Error> {
    for fact in &vectors.facts {
        let question = fact.ask(Question::parse)?;
        let rules = gen_lookup::ours(&question).transpose();
        for answer in rules.into_iter().chain([gen_lookup::ours_in_a_program(&question)]) {
            fact.expect(answer.map_or_else(|why| why, |insns| gen_lookup::to_text(&insns)))?;
        }
    }
    Ok(Summary { compared: vectors.facts.len(), ..Summary::default() })
}

/// Replays the runs of compiled programs. On a machine with fewer CPUs than the recording one, those of
/// objects with values per CPU are left out.
///
/// # Errors
/// The first difference, or more or fewer answers than recorded.
pub fn programs(vectors: &Vectors, corpus: &Corpus, form: Form) -> Result<Summary, Error> {
    let mut summary = Summary::default();
    let style = Style { cpus: vectors.possible_cpus, brief: true };
    let mut facts = vectors.facts.iter();
    for run in &corpus.runs {
        let has_percpu = corpus.objects.get(&run.object).is_some_and(|object| {
            object.maps().iter().any(|spec| spec.attr.map_type.0 == MapCreate::PERCPU_ARRAY)
        });
        let here = possible_cpus() >= vectors.possible_cpus;
        let reason = (has_percpu && !here).then_some(Reason::Cpus);
        for qa in on_cpu_0(|| programs::ask(&with(form), corpus, run, style))? {
            let fact = facts.next().ok_or_else(|| Error::Unrecorded(qa.question.clone()))?;
            summary.count(reason, || fact.expect_qa(qa))?;
        }
    }
    match facts.next() {
        Some(fact) => Err(Error::Question(fact.line, fact.question.clone())),
        None => Ok(summary),
    }
}

/// Replays the translation of compiled programs.
///
/// # Errors
/// The first program whose instructions differ in more than what is meant to be so, or a line that is not understood.
pub fn xlated(vectors: &Vectors, corpus: &Corpus) -> Result<Summary, Error> {
    let mut facts = vectors.facts.iter().peekable();
    let mut summary = Summary::default();
    for run in xlated::programs(corpus) {
        let Some(fact) = facts.next_if(|fact| fact.question == xlated::question(run)) else {
            continue;
        };
        let kernel = xlated::parse(&fact.answer);
        let kernel = kernel.ok_or_else(|| Error::Question(fact.line, fact.question.clone()))?;
        let ours = xlated::ask(&with(Form::Interp), corpus, run);
        let found = ours.as_deref().map(|ours| xlated::compare(ours, &kernel));
        summary.count(None, || match found {
            Some(found) if found.are_deliberate() => Ok(()),
            _ => fact.expect(gen_lookup::to_text(&ours.unwrap_or_default())),
        })?;
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
pub fn random_programs(vectors: &Vectors, form: Form) -> Result<Summary, Error> {
    let mut summary = Summary::default();
    let style = Style { cpus: vectors.possible_cpus, brief: true };
    for fact in &vectors.facts {
        let (kind, seed) = fact.ask(|question| {
            let mut words = question.split(' ');
            let name = words.next()?;
            let kind = *programs::Kind::ALL.iter().find(|kind| kind.name == name)?;
            Some((kind, words.next()?.parse().ok()?))
        })?;
        let missing = kind.name == "helpers" && possible_cpus() < vectors.possible_cpus;
        summary.count(missing.then_some(Reason::Cpus), || {
            let ask = || programs::ask_random(&with(form), kind, seed, style);
            fact.expect_qa(on_cpu_0(ask)?)
        })?;
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
        assert_eq!(summary, Summary { compared: 4, ..Summary::default() });
    }

    #[test]
    fn values_of_more_cpus_are_counted_as_skipped() {
        let summary = ops(&recorded_with(100_000)).unwrap();
        assert_eq!(summary, Summary { compared: 3, skipped: 1, reason: Some(Reason::Cpus) });
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

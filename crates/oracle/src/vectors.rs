//! Vector files: what the kernel answered, one fact a line, `question = answer`.
//!
//! Lines that start with `#` are comments. The first fact is the number of possible CPUs of the
//! machine that was asked.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::kernel::Kernel;

const POSSIBLE_CPUS: &str = "possible_cpus";

/// One line of a vector file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Line number, from 1.
    pub line: usize,
    /// What was asked.
    pub question: String,
    /// What the kernel answered.
    pub answer: String,
}

/// A vector file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vectors {
    /// Possible CPUs of the machine that was asked.
    pub possible_cpus: usize,
    /// The facts, in the order in which they were asked.
    pub facts: Vec<Fact>,
}

/// Why a vector file cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("{path}: {error}")]
    File { path: PathBuf, error: std::io::Error },
    #[error("line {0}: not `question = answer`")]
    Line(usize),
    #[error("the first fact is not `possible_cpus = N`")]
    PossibleCpus,
}

/// The workspace's `testdata` directory.
pub fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata")
}

impl Vectors {
    /// Reads a file of `testdata`.
    ///
    /// # Errors
    /// `File`, or that of the first line that is not understood.
    pub fn read(name: &str) -> Result<Self, Error> {
        let path = testdata().join(name);
        let text = std::fs::read_to_string(&path).map_err(|error| Error::File { path, error })?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, Error> {
        let lines = text.lines().enumerate().filter(|(_, l)| !l.is_empty() && !l.starts_with('#'));
        let mut facts = lines.map(|(i, line)| {
            let (question, answer) = line.split_once(" = ").ok_or(Error::Line(i + 1))?;
            Ok(Fact { line: i + 1, question: question.into(), answer: answer.into() })
        });
        let first = facts.next().ok_or(Error::PossibleCpus)??;
        let possible_cpus = first.answer.parse().ok().filter(|_| first.question == POSSIBLE_CPUS);
        Ok(Self {
            possible_cpus: possible_cpus.ok_or(Error::PossibleCpus)?,
            facts: facts.collect::<Result<_, _>>()?,
        })
    }
}

/// A vector file that is being written.
pub struct Recorder {
    text: String,
}

impl Recorder {
    /// A file about `kernel` that starts with `comment`, lines without their `#`.
    pub fn new(kernel: Kernel, comment: &str) -> Self {
        let mut text = String::new();
        for line in comment.lines() {
            let _ = writeln!(text, "# {line}");
        }
        let _ = writeln!(text, "# Recorded from {kernel}.");
        let mut recorder = Self { text };
        recorder.fact(POSSIBLE_CPUS, crate::possible_cpus());
        recorder
    }

    /// Adds a fact.
    pub fn fact(&mut self, question: impl std::fmt::Display, answer: impl std::fmt::Display) {
        let _ = writeln!(self.text, "{question} = {answer}");
    }

    /// Writes the file into `testdata` and gives its size in bytes.
    ///
    /// # Errors
    /// `File`.
    pub fn write(self, name: &str) -> Result<usize, Error> {
        let path = testdata().join(name);
        path.parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&path, &self.text))
            .map_err(|error| Error::File { path, error })?;
        Ok(self.text.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_keep_their_line_numbers() {
        let text = "# about\npossible_cpus = 2\n\nlookup 1 0x0 = 00 = x\n";
        let vectors = Vectors::parse(text).unwrap();
        assert_eq!(vectors.possible_cpus, 2);
        let fact = Fact { line: 4, question: "lookup 1 0x0".into(), answer: "00 = x".into() };
        assert_eq!(vectors.facts, [fact]);
        assert!(matches!(Vectors::parse("lookup 1 = 2"), Err(Error::PossibleCpus)));
        assert!(matches!(Vectors::parse("possible_cpus = 2\nx"), Err(Error::Line(2))));
    }
}

//! Which programs the live kernel's verifier refuses, and which ones ours does in its strict mode.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use bpfarray_core::insn::Insn;

use super::{Case, Cases, Reason, Strict, TheKernel, Verdict, reason, shrink};
use crate::corpus::Corpus;
use crate::kernel::Kernel;

/// How many programs are shown for each kind of disagreement.
const EXAMPLES: usize = 3;
/// How long one of them may be made shorter.
const SHRINKING: Duration = Duration::from_millis(1500);

/// What the kernel says, and what strict mode says.
type Both = (Verdict, Verdict);

/// A program about which the two disagree, made as short as it goes.
#[derive(Clone, Debug)]
struct Example {
    seed: u64,
    case: Case,
    kernel: String,
    strict: String,
}

/// Programs that one of the two refuses for the same reason.
#[derive(Clone, Default, Debug)]
struct Row {
    count: u64,
    /// How many of them the other one refuses too.
    refused_by_both: u64,
    examples: Vec<Example>,
}

/// What both said about many programs.
#[derive(Clone, Default, Debug)]
pub struct Verdicts {
    accepted_by_both: u64,
    /// What the kernel refuses, by its reason.
    kernel: BTreeMap<(bool, String), Row>,
    /// What only we refuse, by our reason.
    strict: BTreeMap<String, Row>,
}

/// Our reason without what is special to one program.
fn kind_of(text: &str) -> String {
    let text = text.split_once(": ").map_or(text, |(_, kind)| kind);
    let text = text.lines().next().unwrap_or_default();
    let mut kind = String::new();
    for word in text.split(' ') {
        let bare = word.trim_matches(|c: char| ",;:()'".contains(c));
        let is_number =
            bare.trim_start_matches(['-', 'r', 'R']).starts_with(|c: char| c.is_ascii_digit());
        kind.push_str(if is_number { "N" } else { word });
        kind.push(' ');
    }
    kind.trim_end().to_owned()
}

/// What the kernel's verdict is counted under: whether it is about memory, and a few words.
fn row_of(verdict: &Verdict) -> Option<(bool, String)> {
    let Verdict::Refused { errno, text } = verdict else { return None };
    Some(match reason(text) {
        (_, Some(Reason { is_memory, name })) => (is_memory, name.to_owned()),
        ("", None) => (false, format!("nothing was said ({errno})")),
        (line, None) => (false, format!("unknown: {}", kind_of(line))),
    })
}

/// Asks both about `count` programs.
///
/// # Errors
/// What kept one of them from answering.
pub fn compare(kernel: Kernel, corpus: &Corpus, seed: u64, count: u64) -> Result<Verdicts, String> {
    let cases = Cases::new(corpus);
    let mut theirs = TheKernel::new(kernel, corpus)?;
    let mut ours = Strict::new(corpus);
    let mut verdicts = Verdicts::default();
    for seed in seed..seed + count {
        let case = cases.random(seed);
        let kernel = theirs.judge(&case, &case.insns)?;
        let strict = ours.judge(&case, &case.insns)?;
        let mut both = |insns: &[Insn]| {
            // What cannot be judged is judged in no way.
            let kernel = theirs.judge(&case, insns).ok()?;
            Some((kernel, ours.judge(&case, insns).ok()?))
        };
        verdicts.add(seed, &case, (kernel, strict), &mut both);
    }
    Ok(verdicts)
}

impl Verdicts {
    fn add(
        &mut self,
        seed: u64,
        case: &Case,
        (kernel, strict): Both,
        judge: &mut dyn FnMut(&[Insn]) -> Option<Both>,
    ) {
        let row = match (row_of(&kernel), &strict) {
            (Some(name), strict) => {
                let row = self.kernel.entry(name).or_default();
                row.refused_by_both += u64::from(!strict.is_accepted());
                row
            }
            (None, Verdict::Refused { text, .. }) => self.strict.entry(kind_of(text)).or_default(),
            (None, Verdict::Accepted) => {
                self.accepted_by_both += 1;
                return;
            }
        };
        row.count += 1;
        if kernel.is_accepted() == strict.is_accepted() || row.examples.len() == EXAMPLES {
            return;
        }
        let key = |kernel: &Verdict, strict: &Verdict| match strict {
            Verdict::Refused { text, .. } if kernel.is_accepted() => Some((false, kind_of(text))),
            Verdict::Accepted => row_of(kernel),
            Verdict::Refused { .. } => None,
        };
        let wanted = key(&kernel, &strict);
        // A program over which the kernel broods for long is shown as it is.
        let start = Instant::now();
        let still = |insns: &[Insn]| {
            start.elapsed() < SHRINKING
                && judge(insns).is_some_and(|(kernel, strict)| key(&kernel, &strict) == wanted)
        };
        let mut case = case.clone();
        case.insns = shrink(&case.insns, still);
        let (kernel, strict) = judge(&case.insns).unwrap_or((kernel, strict));
        let text = |verdict: &Verdict| match verdict {
            Verdict::Accepted => "accepted".to_owned(),
            Verdict::Refused { errno, text } => {
                let (line, _) = reason(text);
                format!("{errno}: {}", if line.is_empty() { "nothing was said" } else { line })
            }
        };
        row.examples.push(Example { seed, case, kernel: text(&kernel), strict: text(&strict) });
    }

    /// Of the programs that the kernel refuses for what they would do to memory, how many there are, and how many of them
    /// we accept.
    pub fn memory(&self) -> (u64, u64) {
        let rows = self.kernel.iter().filter(|((is_memory, _), _)| *is_memory);
        rows.fold((0, 0), |(all, accepted), (_, row)| {
            (all + row.count, accepted + row.count - row.refused_by_both)
        })
    }

    /// Programs that the kernel accepts, and how many of them we refuse.
    pub fn accepted(&self) -> (u64, u64) {
        let refused = self.strict.values().map(|row| row.count).sum::<u64>();
        (self.accepted_by_both + refused, refused)
    }

    /// Lines of the kernel's log that nobody has sorted yet.
    pub fn unknown(&self) -> Vec<&str> {
        let names = self.kernel.keys().map(|(_, name)| name.as_str());
        names.filter(|name| name.starts_with("unknown")).collect()
    }
}

impl fmt::Display for Verdicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |rows: &mut dyn Iterator<Item = &Row>| {
            rows.fold((0, 0), |(all, both), row| (all + row.count, both + row.refused_by_both))
        };
        let (refused, by_both) = sum(&mut self.kernel.values());
        let (accepted, only_we) = self.accepted();
        let (memory, missed) = self.memory();
        writeln!(f, "{:24}{:>16}{:>16}", "", "strict accepts", "strict refuses")?;
        writeln!(f, "{:24}{:>16}{only_we:>16}", "the kernel accepts", accepted - only_we)?;
        writeln!(f, "{:24}{:>16}{by_both:>16}", "the kernel refuses", refused - by_both)?;
        let share = 100.0 * (memory - missed) as f64 / memory.max(1) as f64;
        writeln!(
            f,
            "\nrefused by the kernel for memory: {memory}, of which strict refuses {share:.2} %"
        )?;
        writeln!(f, "\nreasons of the kernel{:30}{:>9}{:>16}", "", "programs", "strict accepts")?;
        for ((is_memory, name), row) in &self.kernel {
            let kind = if *is_memory { "memory" } else { "other" };
            writeln!(
                f,
                "  {kind:8}{name:41}{:>9}{:>16}",
                row.count,
                row.count - row.refused_by_both
            )?;
        }
        writeln!(f, "\nreasons of strict, where the kernel accepts{:8}{:>9}", "", "programs")?;
        for (name, row) in &self.strict {
            writeln!(f, "  {name:49}{:>9}", row.count)?;
        }
        let name = |(is_memory, name): &(bool, String)| {
            format!("{}: {name}", if *is_memory { "memory" } else { "other" })
        };
        let kernel = self.kernel.iter().map(|(key, row)| (name(key), row));
        let strict = self.strict.iter().map(|(key, row)| (format!("strict: {key}"), row));
        for (name, row) in strict.chain(kernel) {
            for example in &row.examples {
                writeln!(f, "\n== {name}\n{example}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Example {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { origin, prog_type, .. } = &self.case;
        writeln!(f, "seed {}: {prog_type}, from {origin}", self.seed)?;
        for line in self.case.listing() {
            writeln!(f, "    {line}")?;
        }
        write!(f, "  kernel: {}\n  strict: {}", self.kernel, self.strict)
    }
}

//! `testdata/progs/inputs`: which program runs with which packets and contexts. Its head
//! describes the format.

use std::collections::HashMap;

use crate::text;

/// What a program is given for one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Input {
    /// The name in the file.
    pub name: String,
    /// The packet, where there is one.
    pub data: Option<Vec<u8>>,
    /// The context, where there is one.
    pub ctx: Option<Vec<u8>>,
}

/// A program and the inputs it is run with, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Name of the object file without `.bpf.o`.
    pub object: String,
    /// Name of the program.
    pub program: String,
    /// The inputs.
    pub inputs: Vec<Input>,
    /// The capture file whose packets the inputs are, for which one answer is enough.
    pub capture: Option<String>,
}

/// A line that is not understood.
#[derive(Clone, Debug, thiserror::Error)]
#[error("inputs, line {line}: {why}")]
pub struct Error {
    line: usize,
    why: String,
}

/// The runs of a file's text.
///
/// # Errors
/// The first line that is not understood.
pub fn parse(text: &str) -> Result<Vec<Run>, Error> {
    let mut names = Names::default();
    let mut runs = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let error = |why| Error { line: i + 1, why };
        let words: Vec<&str> = line.split_whitespace().collect();
        match *words.as_slice() {
            [] => {}
            [comment, ..] if comment.starts_with('#') => {}
            ["data", name, ref bytes @ ..] => {
                let data = repeated(bytes, text::unhex).map_err(error)?;
                names.inputs.insert(name.into(), Input { data: Some(data), ..Input::default() });
            }
            ["ctx", name, ref words @ ..] => {
                let word = |s: &str| text::number(s).map(|n| n.to_ne_bytes().to_vec());
                let ctx = repeated(words, word).map_err(error)?;
                names.inputs.insert(name.into(), Input { ctx: Some(ctx), ..Input::default() });
            }
            ["group", name, ref members @ ..] => {
                let members = names.expand(members).map_err(error)?;
                names.groups.insert(name.into(), members);
            }
            ["run", object, program, ref inputs @ ..] => runs.push(Run {
                object: object.into(),
                program: program.into(),
                inputs: names.expand(inputs).map_err(error)?,
                capture: None,
            }),
            _ => return Err(error(format!("unknown statement: {line}"))),
        }
    }
    Ok(runs)
}

/// The bytes of a list of words, each of which may be followed by `*N`.
fn repeated(words: &[&str], parse: impl Fn(&str) -> Option<Vec<u8>>) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    for word in words {
        let (value, times) = word.split_once('*').unwrap_or((word, "1"));
        let value = parse(value).ok_or_else(|| format!("not a number: {word}"))?;
        let times: usize = times.parse().map_err(|_| format!("not a count: {word}"))?;
        bytes.extend(value.repeat(times));
    }
    Ok(bytes)
}

#[derive(Default)]
struct Names {
    inputs: HashMap<String, Input>,
    groups: HashMap<String, Vec<Input>>,
}

impl Names {
    fn expand(&self, names: &[&str]) -> Result<Vec<Input>, String> {
        let mut inputs = Vec::new();
        for &name in names {
            match self.groups.get(name) {
                Some(group) => inputs.extend_from_slice(group),
                None => inputs.push(self.input(name)?),
            }
        }
        Ok(inputs)
    }

    /// One input, or a packet and a context joined by `+`.
    fn input(&self, name: &str) -> Result<Input, String> {
        let mut input = Input { name: name.into(), ..Input::default() };
        for part in name.split('+') {
            let part = self.inputs.get(part).ok_or_else(|| format!("no input named {part}"))?;
            input.data = input.data.or_else(|| part.data.clone());
            input.ctx = input.ctx.or_else(|| part.ctx.clone());
        }
        Ok(input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_pairs_are_expanded_in_order() {
        let text = "data p 00*2 ff\nctx c 1*2\ngroup g p c\n\nrun o prog g p+c # not a comment";
        assert!(parse(text).unwrap_err().to_string().contains("line 5: no input named #"));
        let runs = parse(text.trim_end_matches(" # not a comment")).unwrap();
        let packet = Some(vec![0, 0, 0xff]);
        let ctx = Some([1_u64.to_ne_bytes(), 1_u64.to_ne_bytes()].concat());
        let inputs = &runs[0].inputs;
        assert_eq!((runs[0].object.as_str(), runs[0].program.as_str()), ("o", "prog"));
        assert_eq!((&inputs[0].data, &inputs[0].ctx), (&packet, &None));
        assert_eq!((&inputs[1].data, &inputs[1].ctx), (&None, &ctx));
        assert_eq!(inputs[2], Input { name: "p+c".into(), data: packet, ctx });
    }

    #[test]
    fn what_is_not_understood_names_its_line() {
        assert_eq!(
            parse("\nrum o p").unwrap_err().to_string(),
            "inputs, line 2: unknown statement: rum o p"
        );
        assert!(parse("data p 0g").is_err());
        assert!(parse("ctx c 1*x").is_err());
    }
}

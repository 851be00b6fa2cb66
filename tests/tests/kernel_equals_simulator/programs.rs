//! The object's programs as the kernel gets them: each with all functions that it calls.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};
use aya_obj::generated::bpf_insn;
use aya_obj::{Function as Code, Object};

/// A program.
pub struct Linked {
    pub name: String,
    /// The program itself, and then what it calls, in the order of their places.
    pub functions: Vec<Function>,
}

/// One of its functions.
pub struct Function {
    pub name: String,
    /// Whether the verifier looks at it by itself.
    pub global: bool,
    pub parameters: Vec<Parameter>,
    /// How much stack it uses.
    pub stack: u32,
    /// Which functions it calls, or has called in a loop.
    pub calls: BTreeSet<usize>,
}

/// What a parameter is to the verifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    Number,
    Context,
    Memory,
}

impl Linked {
    /// All programs of an object.
    pub fn all(object: &[u8]) -> Result<Vec<Self>> {
        let mut object = Object::parse(object).context("parse the BPF object")?;
        let sections = object.functions.keys().map(|(section, _)| *section);
        object
            .relocate_calls(&sections.collect())
            .context("link the programs")?;
        let btf = object.btf.as_ref().context("the object has no BTF")?;
        let btf = btf.to_bytes();
        let types = Types::parse(&btf)?;
        let mut names: Vec<&String> = object.programs.keys().collect();
        names.sort();
        names
            .into_iter()
            .map(|name| {
                let code = &object.functions[&object.programs[name].function_key()];
                Self::new(name, code, &types).with_context(|| format!("look at {name}"))
            })
            .collect()
    }

    fn new(name: &str, code: &Code, types: &Types) -> Result<Self> {
        let starts: BTreeMap<usize, u32> = code
            .func_info
            .func_info
            .iter()
            .map(|info| (info.insn_off as usize, info.type_id))
            .collect();
        let numbers: BTreeMap<usize, usize> = starts.keys().copied().zip(0..).collect();
        let ends = starts
            .keys()
            .skip(1)
            .copied()
            .chain([code.instructions.len()]);
        let mut functions = Vec::new();
        for ((start, kind), end) in starts.iter().zip(ends) {
            let (name, global, parameters) = types.function(*kind)?;
            let mut function = Function {
                name,
                global,
                parameters,
                stack: 0,
                calls: BTreeSet::new(),
            };
            for (at, instruction) in code.instructions.iter().enumerate().take(end).skip(*start) {
                function.stack = function.stack.max(stack_use(instruction));
                if let Some(target) = callee(at, instruction) {
                    let number = numbers.get(&target).with_context(|| {
                        format!("instruction {at} calls {target}, which is no function's beginning")
                    })?;
                    function.calls.insert(*number);
                }
            }
            functions.push(function);
        }
        Ok(Self {
            name: name.to_owned(),
            functions,
        })
    }
}

/// The register that points to the end of the stack.
const FRAME: u8 = 10;

/// How far below the end of the stack an instruction reaches: by an offset from it, or by an address
/// that is being made (`rX = r10; rX += -N`: for other sums, the constants are no small negative ones).
fn stack_use(instruction: &bpf_insn) -> u32 {
    const ADD: u8 = 0x07;
    let below = |offset: i32| {
        if (-512..0).contains(&offset) {
            offset.unsigned_abs()
        } else {
            0
        }
    };
    match instruction.code & 0x07 {
        // Loads, whose base is the source, and stores, whose base is the target.
        0x01 if instruction.src_reg() == FRAME => below(instruction.off.into()),
        0x02 | 0x03 if instruction.dst_reg() == FRAME => below(instruction.off.into()),
        _ if instruction.code == ADD => below(instruction.imm),
        _ => 0,
    }
}

/// The place that an instruction calls, or whose address it takes.
fn callee(at: usize, instruction: &bpf_insn) -> Option<usize> {
    const CALL: u8 = 0x85;
    const LOAD_WIDE: u8 = 0x18;
    const PSEUDO_CALL: u8 = 1;
    const PSEUDO_FUNCTION: u8 = 4;
    let is_call = instruction.code == CALL && instruction.src_reg() == PSEUDO_CALL;
    let is_address = instruction.code == LOAD_WIDE && instruction.src_reg() == PSEUDO_FUNCTION;
    (is_call || is_address).then(|| (at as i64 + 1 + i64::from(instruction.imm)) as usize)
}

/// The types of the object, as BTF has them (Documentation/bpf/btf.rst).
struct Types<'b> {
    records: Vec<&'b [u8]>,
    strings: &'b [u8],
}

mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const TYPEDEF: u32 = 8;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const ENUM64: u32 = 19;
}

impl<'b> Types<'b> {
    fn parse(bytes: &'b [u8]) -> Result<Self> {
        let header = word(bytes, 4)? as usize;
        let part = |at: usize| -> Result<&'b [u8]> {
            let (offset, length) = (word(bytes, at)? as usize, word(bytes, at + 4)? as usize);
            bytes
                .get(header + offset..header + offset + length)
                .context("BTF ends before its header says")
        };
        let (mut rest, strings) = (part(8)?, part(16)?);
        // Type 0 is void.
        let mut records = vec![&bytes[..0]];
        while !rest.is_empty() {
            let info = word(rest, 4)?;
            let count = (info & 0xffff) as usize;
            let more = match info >> 24 & 0x1f {
                kind::INT | kind::VAR | kind::DECL_TAG => 4,
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * count,
                kind::ENUM | kind::FUNC_PROTO => 8 * count,
                _ => 0,
            };
            let (record, others) = rest
                .split_at_checked(12 + more)
                .context("BTF ends within a type")?;
            records.push(record);
            rest = others;
        }
        Ok(Self { records, strings })
    }

    fn record(&self, number: u32) -> Result<&'b [u8]> {
        self.records
            .get(number as usize)
            .copied()
            .with_context(|| format!("BTF has no type {number}"))
    }

    fn kind(&self, number: u32) -> Result<u32> {
        match self.record(number)? {
            [] => Ok(0),
            record => Ok(word(record, 4)? >> 24 & 0x1f),
        }
    }

    fn name(&self, number: u32) -> Result<String> {
        let at = match self.record(number)? {
            [] => 0,
            record => word(record, 0)? as usize,
        };
        let text = self
            .strings
            .get(at..)
            .context("a name beyond the strings")?;
        let end = text
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(text.len());
        Ok(String::from_utf8_lossy(&text[..end]).into_owned())
    }

    /// A function's name, whether it is global, and its parameters.
    fn function(&self, number: u32) -> Result<(String, bool, Vec<Parameter>)> {
        const GLOBAL: u32 = 1;
        let record = self.record(number)?;
        if self.kind(number)? != kind::FUNC {
            bail!("type {number} is no function");
        }
        let prototype = self.record(word(record, 8)?)?;
        let parameters = prototype[12..]
            .chunks_exact(8)
            .map(|parameter| self.parameter(word(parameter, 4)?))
            .collect::<Result<_>>()?;
        let name = self.name(number)?;
        // The loader makes static functions of the compiler's own.
        let own = matches!(name.as_str(), "memset" | "memcpy" | "memmove" | "memcmp");
        let global = word(record, 4)? & 0xffff == GLOBAL && !own;
        Ok((name, global, parameters))
    }

    fn parameter(&self, number: u32) -> Result<Parameter> {
        let mut number = self.plain(number)?;
        if self.kind(number)? != kind::PTR {
            return Ok(Parameter::Number);
        }
        number = self.plain(word(self.record(number)?, 8)?)?;
        Ok(match self.name(number)?.as_str() {
            "__sk_buff" | "xdp_md" => Parameter::Context,
            _ => Parameter::Memory,
        })
    }

    /// The type without names and qualifiers around it.
    fn plain(&self, mut number: u32) -> Result<u32> {
        while (kind::TYPEDEF..=kind::RESTRICT).contains(&self.kind(number)?) {
            number = word(self.record(number)?, 8)?;
        }
        Ok(number)
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let word = bytes.get(at..at + 4).context("BTF is cut short")?;
    Ok(u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

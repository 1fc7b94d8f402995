//! Reads the tensors of a file that `torch.save` wrote (`.bin`, `.pth`, `.ckpt`): a zip archive
//! with a pickle that describes the tensors, and their bytes. Nothing of Python runs. The pickle is
//! interpreted by a machine that knows the few instructions and types that weights consist of;
//! whatever else occurs in it is refused by name.
//!
//! `pytorch-reader`, a well-kept crate, reads the same files but passes over types that it does not
//! know, so that a file with foreign code in it would be accepted.

use std::collections::BTreeMap;

/// Longest pickle that is read. That of Stable Diffusion has 200 KB.
pub(crate) const PICKLE_BYTES_MAX: usize = 64 << 20;
/// Deepest nesting of dictionaries.
const DEPTH_MAX: usize = 16;

/// Why a pickle is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    #[error("it refers to {0}, which is none of the types that weights consist of: it is not read")]
    Forbidden(String),
    #[error("its pickle has the instruction {0:#04x} at byte {1}, which torch.save does not write")]
    Instruction(u8, usize),
    #[error("its pickle is damaged at byte {at}: {what}")]
    Damaged { at: usize, what: &'static str },
    #[error("tensor {name} {what}")]
    Tensor { name: String, what: String },
    #[error("{0} names two tensors")]
    Twice(String),
    #[error("its pickle has {0} bytes; at most {PICKLE_BYTES_MAX} are read")]
    Long(usize),
}

/// The type of a tensor's values, as safetensors names it, and their size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dtype {
    pub name: &'static str,
    pub size: u64,
}

/// A tensor, as the pickle describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PickledTensor {
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    /// Distances between neighbours in each dimension, in values.
    pub strides: Vec<u64>,
    /// The name of its storage in the archive.
    pub storage: String,
    /// Number of values in that storage.
    pub storage_length: u64,
    /// First value in that storage.
    pub offset: u64,
}

impl PickledTensor {
    /// The number of its values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Whether its values follow each other.
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        let dimensions = self.shape.iter().zip(&self.strides).rev();
        dimensions.into_iter().all(|(length, stride)| {
            let fits = *length == 1 || *stride == expected;
            expected *= *length;
            fits
        })
    }

    /// The position in the storage of each value, in order.
    pub fn positions(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.count()).map(|index| {
            let mut rest = index;
            let dimensions = self.shape.iter().zip(&self.strides).rev();
            dimensions.fold(self.offset, |position, (length, stride)| {
                let coordinate = rest % length;
                rest /= length;
                position + coordinate * stride
            })
        })
    }

    fn check(&self, name: &str) -> Result<(), PickleError> {
        let wrong = |what: String| PickleError::Tensor {
            name: name.to_owned(),
            what,
        };
        let dimensions = self.shape.iter().zip(&self.strides);
        let mut count: u64 = 1;
        let mut last = self.offset;
        for (length, stride) in dimensions {
            if *length > 1 && *stride == 0 {
                return Err(wrong("repeats its values without storing them".to_owned()));
            }
            let steps = length.saturating_sub(1);
            last = last.saturating_add(steps.saturating_mul(*stride));
            count = count.saturating_mul(*length);
        }
        let end = if count == 0 {
            0
        } else {
            last.saturating_add(1)
        };
        if self.shape.len() != self.strides.len() || self.storage_length < end.max(count) {
            return Err(wrong(format!(
                "has the shape {:?} with strides {:?} from value {} of a storage of {} values, \
                which does not hold it",
                self.shape, self.strides, self.offset, self.storage_length
            )));
        }
        Ok(())
    }
}

/// The tensors of a pickle by their dotted names, and the names of values that are no tensors.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pickled {
    pub tensors: BTreeMap<String, PickledTensor>,
    pub ignored: Vec<String>,
}

/// Reads a pickle. The dictionary `state_dict` is read in place of the whole if there is one.
///
/// # Errors
/// Instructions or types that weights do not consist of, or a tensor that its storage does not
/// hold.
pub fn read(pickle: &[u8]) -> Result<Pickled, PickleError> {
    if pickle.len() > PICKLE_BYTES_MAX {
        return Err(PickleError::Long(pickle.len()));
    }
    let mut machine = Machine {
        bytes: pickle,
        at: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        memo: BTreeMap::new(),
    };
    let root = machine.run()?;
    let mut found = Pickled::default();
    let state = machine.entry(root, "state_dict");
    if let Some(state) = state {
        if let Node::Dict(entries) = &machine.nodes[root] {
            let others = entries.iter().map(|(key, _)| machine.key(*key));
            found
                .ignored
                .extend(others.filter(|key| key != "state_dict"));
        }
        machine.collect(state, "", 0, &mut found)?;
    } else {
        machine.collect(root, "", 0, &mut found)?;
    }
    Ok(found)
}

/// The types that occur in files of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

/// The storages of torch: name in Python, type in safetensors, size of a value.
const STORAGES: [(&str, &str, u64); 8] = [
    ("FloatStorage", "F32", 4),
    ("HalfStorage", "F16", 2),
    ("BFloat16Storage", "BF16", 2),
    ("DoubleStorage", "F64", 8),
    ("LongStorage", "I64", 8),
    ("IntStorage", "I32", 4),
    ("ByteStorage", "U8", 1),
    ("BoolStorage", "BOOL", 1),
];

impl Dtype {
    /// The type of this name in safetensors, and the name of its storage in Python; None if torch
    /// has none of this program's.
    pub(crate) fn storage(name: &str) -> Option<(&'static str, Self)> {
        let found = STORAGES.iter().find(|(_, dtype, _)| *dtype == name);
        found.map(|(storage, name, size)| (*storage, Self { name, size: *size }))
    }
}

fn global(module: &str, name: &str) -> Option<Global> {
    match (module, name) {
        ("collections", "OrderedDict") => Some(Global::OrderedDict),
        ("torch._utils", "_rebuild_tensor_v2") => Some(Global::RebuildTensor),
        ("torch._utils", "_rebuild_parameter") => Some(Global::RebuildParameter),
        ("torch", _) => {
            let found = STORAGES.iter().find(|(storage, ..)| *storage == name);
            found.map(|(_, name, size)| Global::Storage(Dtype { name, size: *size }))
        }
        _ => None,
    }
}

/// A value. Others refer to it by its index, so that no instruction copies it.
#[derive(Debug)]
enum Node {
    Other,
    Int(i64),
    Text(String),
    Tuple(Vec<usize>),
    List(Vec<usize>),
    Dict(Vec<(usize, usize)>),
    Global(Global),
    Storage {
        dtype: Dtype,
        key: String,
        length: u64,
    },
    Tensor(PickledTensor),
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    /// None: a mark.
    stack: Vec<Option<usize>>,
    memo: BTreeMap<u64, usize>,
}

impl Machine<'_> {
    fn damaged<T>(&self, what: &'static str) -> Result<T, PickleError> {
        let at = self.at;
        Err(PickleError::Damaged { at, what })
    }

    fn take(&mut self, count: usize) -> Result<&[u8], PickleError> {
        let start = self.at;
        let end = start
            .checked_add(count)
            .filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return self.damaged("it ends inside an instruction");
        };
        self.at = end;
        Ok(&self.bytes[start..end])
    }

    /// A number of up to 8 bytes, little-endian.
    fn number(&mut self, count: usize) -> Result<u64, PickleError> {
        let mut bytes = [0; 8];
        bytes[..count].copy_from_slice(self.take(count)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn line(&mut self) -> Result<String, PickleError> {
        let rest = &self.bytes[self.at..];
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            return self.damaged("a line does not end");
        };
        let line = self.take(end)?.to_vec();
        self.take(1)?;
        match String::from_utf8(line) {
            Ok(line) => Ok(line),
            Err(_) => self.damaged("a name is not UTF-8"),
        }
    }

    fn text(&mut self, length_bytes: usize) -> Result<Node, PickleError> {
        let length = self.number(length_bytes)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let bytes = self.take(length)?.to_vec();
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Node::Text(text)),
            Err(_) => self.damaged("a text is not UTF-8"),
        }
    }

    fn push(&mut self, node: Node) {
        self.nodes.push(node);
        self.stack.push(Some(self.nodes.len() - 1));
    }

    fn pop(&mut self) -> Result<usize, PickleError> {
        match self.stack.pop() {
            Some(Some(node)) => Ok(node),
            _ => self.damaged("an instruction misses its arguments"),
        }
    }

    fn top(&self) -> Result<usize, PickleError> {
        match self.stack.last() {
            Some(Some(node)) => Ok(*node),
            _ => self.damaged("an instruction misses its arguments"),
        }
    }

    /// What was pushed since the last mark.
    fn since_mark(&mut self) -> Result<Vec<usize>, PickleError> {
        let Some(mark) = self.stack.iter().rposition(Option::is_none) else {
            return self.damaged("a mark is missing");
        };
        let found = self.stack.split_off(mark);
        Ok(found.into_iter().flatten().collect())
    }

    /// Runs all instructions; returns the result.
    fn run(&mut self) -> Result<usize, PickleError> {
        loop {
            let start = self.at;
            let instruction = self.take(1)?[0];
            match instruction {
                // PROTO, FRAME
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                b'.' => return self.pop(),
                b'(' => self.stack.push(None),
                b'0' => drop(self.stack.pop()),
                // None, booleans, floats
                b'N' | 0x88 | 0x89 => self.push(Node::Other),
                b'G' => {
                    self.take(8)?;
                    self.push(Node::Other);
                }
                b'J' => {
                    let number = self.number(4)? as u32;
                    self.push(Node::Int(i64::from(number.cast_signed())));
                }
                b'K' | b'M' => {
                    let number = self.number(if instruction == b'K' { 1 } else { 2 })?;
                    self.push(Node::Int(number.cast_signed()));
                }
                0x8a => self.long()?,
                b'X' | 0x8c => {
                    let text = self.text(if instruction == b'X' { 4 } else { 1 })?;
                    self.push(text);
                }
                b'}' => self.push(Node::Dict(Vec::new())),
                b']' | 0x8f => self.push(Node::List(Vec::new())),
                b')' => self.push(Node::Tuple(Vec::new())),
                b't' => {
                    let items = self.since_mark()?;
                    self.push(Node::Tuple(items));
                }
                0x85..=0x87 => {
                    let count = usize::from(instruction - 0x84);
                    let mut items: Vec<usize> =
                        (0..count).map(|_| self.pop()).collect::<Result<_, _>>()?;
                    items.reverse();
                    self.push(Node::Tuple(items));
                }
                // Memo: put and get
                b'q' | b'r' => {
                    let key = self.number(if instruction == b'q' { 1 } else { 4 })?;
                    let top = self.top()?;
                    self.memo.insert(key, top);
                }
                0x94 => {
                    let top = self.top()?;
                    self.memo.insert(self.memo.len() as u64, top);
                }
                b'h' | b'j' => {
                    let key = self.number(if instruction == b'h' { 1 } else { 4 })?;
                    let Some(node) = self.memo.get(&key).copied() else {
                        return self.damaged("it refers to a value that it did not store");
                    };
                    self.stack.push(Some(node));
                }
                b'a' | b'e' | b's' | b'u' => self.add_items(instruction)?,
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push_global(&module, &name)?;
                }
                0x93 => self.stacked_global()?,
                b'Q' => self.persistent()?,
                b'R' => self.reduce()?,
                // The state of a dictionary has no tensors of its own.
                b'b' => drop(self.pop()?),
                other => return Err(PickleError::Instruction(other, start)),
            }
        }
    }

    fn long(&mut self) -> Result<(), PickleError> {
        let count = self.number(1)? as usize;
        let bytes = self.take(count)?;
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut all = if negative { [0xff; 8] } else { [0; 8] };
        let node = if count <= 8 {
            all[..count].copy_from_slice(bytes);
            Node::Int(i64::from_le_bytes(all))
        } else {
            Node::Other
        };
        self.push(node);
        Ok(())
    }

    fn add_items(&mut self, instruction: u8) -> Result<(), PickleError> {
        let items = match instruction {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.since_mark()?,
        };
        let top = self.top()?;
        let is_list = matches!(instruction, b'a' | b'e');
        match &mut self.nodes[top] {
            Node::List(list) if is_list => list.extend(items),
            Node::Dict(entries) if !is_list && items.len().is_multiple_of(2) => {
                entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            _ => return self.damaged("items are added to a value that has none"),
        }
        Ok(())
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<(), PickleError> {
        let Some(global) = global(module, name) else {
            return Err(PickleError::Forbidden(format!("{module}.{name}")));
        };
        self.push(Node::Global(global));
        Ok(())
    }

    fn stacked_global(&mut self) -> Result<(), PickleError> {
        let (name, module) = (self.pop()?, self.pop()?);
        match (&self.nodes[module], &self.nodes[name]) {
            (Node::Text(module), Node::Text(name)) => {
                let (module, name) = (module.clone(), name.clone());
                self.push_global(&module, &name)
            }
            _ => self.damaged("a type has no name"),
        }
    }

    /// `("storage", type, key, device, length)`.
    fn persistent(&mut self) -> Result<(), PickleError> {
        let id = self.pop()?;
        let Node::Tuple(parts) = &self.nodes[id] else {
            return self.damaged("a storage is not described by a tuple");
        };
        let [kind, of, key, _, length] = parts.as_slice() else {
            return self.damaged("a storage is not described by five values");
        };
        let storage = match (
            &self.nodes[*kind],
            &self.nodes[*of],
            &self.nodes[*key],
            &self.nodes[*length],
        ) {
            (
                Node::Text(kind),
                Node::Global(Global::Storage(dtype)),
                Node::Text(key),
                Node::Int(length),
            ) if kind == "storage" && *length >= 0 => Node::Storage {
                dtype: *dtype,
                key: key.clone(),
                length: length.cast_unsigned(),
            },
            _ => return self.damaged("a storage is described by other values"),
        };
        self.push(storage);
        Ok(())
    }

    fn reduce(&mut self) -> Result<(), PickleError> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let (Node::Tuple(arguments), Node::Global(callable)) =
            (&self.nodes[arguments], &self.nodes[callable])
        else {
            return self.damaged("what is called is no type");
        };
        match (callable, arguments.as_slice()) {
            (Global::OrderedDict, []) => self.push(Node::Dict(Vec::new())),
            (Global::RebuildParameter, [data, ..]) => self.stack.push(Some(*data)),
            (Global::RebuildTensor, [storage, offset, shape, strides, ..]) => {
                let tensor = self.tensor([*storage, *offset, *shape, *strides])?;
                self.push(Node::Tensor(tensor));
            }
            _ => return self.damaged("a type is called with other arguments"),
        }
        Ok(())
    }

    fn tensor(
        &self,
        [storage, offset, shape, strides]: [usize; 4],
    ) -> Result<PickledTensor, PickleError> {
        let (Node::Storage { dtype, key, length }, Node::Int(offset)) =
            (&self.nodes[storage], &self.nodes[offset])
        else {
            return self.damaged("a tensor has no storage");
        };
        let numbers = |node: usize| -> Option<Vec<u64>> {
            let Node::Tuple(items) = &self.nodes[node] else {
                return None;
            };
            let number = |item: &usize| match self.nodes[*item] {
                Node::Int(number) => u64::try_from(number).ok(),
                _ => None,
            };
            items.iter().map(number).collect()
        };
        match (numbers(shape), numbers(strides), u64::try_from(*offset)) {
            (Some(shape), Some(strides), Ok(offset)) => Ok(PickledTensor {
                dtype: *dtype,
                shape,
                strides,
                storage: key.clone(),
                storage_length: *length,
                offset,
            }),
            _ => self.damaged("a tensor has no shape"),
        }
    }

    fn key(&self, node: usize) -> String {
        match &self.nodes[node] {
            Node::Text(text) => text.clone(),
            Node::Int(number) => number.to_string(),
            _ => "a value".to_owned(),
        }
    }

    /// The value of a key, if it is a dictionary.
    fn entry(&self, dict: usize, key: &str) -> Option<usize> {
        let Node::Dict(entries) = &self.nodes[dict] else {
            return None;
        };
        let found = entries.iter().find(|(name, _)| self.key(*name) == key)?;
        matches!(self.nodes[found.1], Node::Dict(_)).then_some(found.1)
    }

    fn collect(
        &self,
        node: usize,
        name: &str,
        depth: usize,
        found: &mut Pickled,
    ) -> Result<(), PickleError> {
        match &self.nodes[node] {
            Node::Dict(entries) if depth < DEPTH_MAX => {
                for (key, value) in entries {
                    let key = self.key(*key);
                    let inner = if name.is_empty() {
                        key
                    } else {
                        format!("{name}.{key}")
                    };
                    self.collect(*value, &inner, depth + 1, found)?;
                }
                Ok(())
            }
            Node::Tensor(tensor) => {
                tensor.check(name)?;
                let previous = found.tensors.insert(name.to_owned(), tensor.clone());
                match previous {
                    None => Ok(()),
                    Some(_) => Err(PickleError::Twice(name.to_owned())),
                }
            }
            _ => {
                found.ignored.push(name.to_owned());
                Ok(())
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// `torch.save({"a": {"w": tensor of 2x3}})` without the archive, as protocol 2.
    fn pickle(global: &str) -> Vec<u8> {
        let mut bytes =
            b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01}q\x02X\x01\x00\x00\x00wq\x03".to_vec();
        bytes.extend_from_slice(global.as_bytes());
        bytes.extend_from_slice(b"q\x04((X\x07\x00\x00\x00storageq\x05ctorch\nHalfStorage\nq\x06");
        bytes.extend_from_slice(b"X\x01\x00\x00\x000q\x07X\x03\x00\x00\x00cpuq\x08K\x06tq\tQ");
        bytes.extend_from_slice(b"K\x00K\x02K\x03\x86q\nK\x03K\x01\x86q\x0b\x89ccollections\n");
        bytes.extend_from_slice(b"OrderedDict\nq\x0c)Rq\rtq\x0eRq\x0fss.");
        bytes
    }

    const REBUILD: &str = "ctorch._utils\n_rebuild_tensor_v2\n";

    #[test]
    fn nested_tensors_have_dotted_names() {
        let found = read(&pickle(REBUILD)).unwrap();
        let tensor = &found.tensors["a.w"];
        assert_eq!(
            (tensor.dtype.name, tensor.shape.as_slice()),
            ("F16", &[2, 3][..])
        );
        assert_eq!((tensor.storage.as_str(), tensor.offset), ("0", 0));
        assert!(tensor.is_contiguous() && found.ignored.is_empty());
        let positions: Vec<u64> = tensor.positions().collect();
        assert_eq!(positions, [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn every_type_that_is_not_listed_is_refused_by_name() {
        for name in [
            "os\nsystem",
            "builtins\neval",
            "torch\nload",
            "numpy\nndarray",
        ] {
            let error = read(&pickle(&format!("c{name}\n"))).unwrap_err();
            assert_eq!(error, PickleError::Forbidden(name.replace('\n', ".")));
        }
        // os.system("true"), as an attack writes it, in two protocols.
        let error = read(b"cos\nsystem\n(S'true'\ntR.").unwrap_err();
        assert!(
            error.to_string().starts_with("it refers to os.system"),
            "{error}"
        );
        let error = read(b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.").unwrap_err();
        assert_eq!(error, PickleError::Forbidden("posix.system".to_owned()));
    }

    #[test]
    fn a_damaged_pickle_is_an_error_at_every_length_and_byte() {
        let whole = pickle(REBUILD);
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "{length}");
        }
        for at in 0..whole.len() {
            for value in [0, 0x28, 0x2e, 0x52, 0x71, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                // No panic; most are errors.
                let _ = read(&bytes);
            }
        }
    }

    #[test]
    fn a_tensor_stays_inside_its_storage_and_has_one_name() {
        let text = |bytes: &[u8], from: &[u8], to: &[u8]| {
            let at = bytes.windows(from.len()).position(|it| it == from).unwrap();
            let mut bytes = bytes.to_vec();
            bytes[at..at + from.len()].copy_from_slice(to);
            bytes
        };
        let whole = pickle(REBUILD);
        let error = read(&text(&whole, b"K\x06tq\tQ", b"K\x05tq\tQ")).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("tensor a.w has the shape [2, 3]"),
            "{error}"
        );
        let error = read(&text(&whole, b"K\x03K\x01\x86", b"K\x00K\x01\x86")).unwrap_err();
        assert!(error.to_string().contains("repeats its values"), "{error}");
        let transposed = text(&whole, b"K\x03K\x01\x86", b"K\x01K\x02\x86");
        let found = read(&transposed).unwrap();
        let tensor = &found.tensors["a.w"];
        assert!(!tensor.is_contiguous());
        assert_eq!(tensor.positions().collect::<Vec<_>>(), [0, 2, 4, 1, 3, 5]);
    }
}

//! What an object only declares: functions and variables of the kernel (`__ksym`), and values of its configuration
//! (`__kconfig`). Compilers list them in the BTF sections `.ksyms` and `.kconfig`; the ELF file has only their names.

use std::collections::HashMap;

use crate::kernel::btf::{Btf, BtfError, BtfKind, Type};
use crate::kernel::elf::{Elf, MAX_OBJECT};
use crate::kernel::map::{ARRAY, CONFIGURATION, MapDefinition, MapShape, RDONLY_PROG};

/// The section of the kernel's functions and variables.
pub const KERNEL_SYMBOLS: &str = ".ksyms";

/// What a declared name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extern {
    /// A value of the kernel's configuration, at this offset in the map `.kconfig`.
    Configuration(u32),
    /// A function of the kernel.
    Function,
    /// A variable of the kernel, with its type in the object.
    Variable(u32),
    /// A symbol without a type: its address.
    Address,
}

/// A value of the kernel's configuration that an object reads.
#[derive(Debug, Clone, Copy)]
pub struct ConfigurationVariable<'a> {
    /// `CONFIG_…`, or `LINUX_…` for what the loader finds out.
    pub name: &'a str,
    /// Its type, without qualifiers.
    pub ty: Type<'a>,
    /// Its size in bytes.
    pub size: u32,
    /// Its place in the map.
    pub offset: u32,
    /// True if it may be missing, and is 0 then.
    pub weak: bool,
}

/// The declarations of an object.
#[derive(Debug, Default)]
pub struct Externs<'a> {
    by_name: HashMap<&'a str, Extern>,
    /// What it reads of the configuration, by offset.
    pub configuration: Vec<ConfigurationVariable<'a>>,
    /// Bytes of the map `.kconfig`; 0 without one.
    pub size: u32,
}

impl<'a> Externs<'a> {
    /// Reads the declarations.
    ///
    /// # Errors
    /// If the BTF is not valid, or the configuration would take more than 16 MiB.
    pub fn read(elf: &Elf<'a>, btf: &Btf<'a>) -> Result<Self, BtfError> {
        let mut found = Self::default();
        if let Some(section) = btf.data_section(KERNEL_SYMBOLS) {
            for entry in section.variables() {
                let declared = btf.ty(entry.ty)?;
                let stands_for = match declared.kind {
                    BtfKind::Func => Extern::Function,
                    BtfKind::Var if btf.peel(declared.size_or_type)?.kind == BtfKind::Void => Extern::Address,
                    BtfKind::Var => Extern::Variable(declared.size_or_type),
                    _ => return Err(BtfError::Kind(declared.id)),
                };
                found.by_name.insert(btf.name(&declared)?, stands_for);
            }
        }
        if let Some(section) = btf.data_section(CONFIGURATION) {
            found.place(elf, btf, &section)?;
        }
        Ok(found)
    }

    /// What a name stands for; None if the BTF does not declare it.
    pub fn get(&self, name: &str) -> Option<Extern> {
        self.by_name.get(name).copied()
    }

    /// True if a function or a typed variable of the kernel is declared: their ids are those of the kernel's BTF.
    pub fn need_types(&self) -> bool {
        self.by_name.values().any(|stands_for| !matches!(stands_for, Extern::Configuration(_)))
    }

    /// Gives each value of the configuration its place: those with the strictest alignment first, so that no gaps arise.
    fn place(&mut self, elf: &Elf<'a>, btf: &Btf<'a>, section: &Type<'a>) -> Result<(), BtfError> {
        let mut values = Vec::new();
        for entry in section.variables() {
            let variable = btf.ty(entry.ty)?;
            if variable.kind != BtfKind::Var {
                return Err(BtfError::Kind(variable.id));
            }
            let name = btf.name(&variable)?;
            let (ty, size) = (btf.peel(variable.size_or_type)?, btf.size(variable.size_or_type)?);
            let size = u32::try_from(size).map_err(|_| BtfError::Type(variable.id))?;
            let element = ty.array().map_or(Ok(u64::from(size)), |(element, _)| btf.size(element))?;
            let weak = elf.symbols.iter().any(|symbol| symbol.name == name && symbol.weak);
            values.push((element.clamp(1, 8), ConfigurationVariable { name, ty, size, offset: 0, weak }));
        }
        values.sort_by_key(|(alignment, value)| (std::cmp::Reverse(*alignment), value.name));
        for (alignment, mut value) in values {
            let offset = u64::from(self.size).div_ceil(alignment) * alignment;
            let end = offset + u64::from(value.size);
            if end > MAX_OBJECT as u64 {
                return Err(BtfError::Type(section.id));
            }
            // Both are at most MAX_OBJECT.
            (value.offset, self.size) = (offset as u32, end as u32);
            self.by_name.insert(value.name, Extern::Configuration(value.offset));
            self.configuration.push(value);
        }
        Ok(())
    }

    /// The map of the configuration's values.
    pub fn map(&self, btf: &Btf<'_>) -> Option<MapDefinition<'a>> {
        let section = btf.data_section(CONFIGURATION)?;
        (self.size > 0).then(|| MapDefinition {
            name: CONFIGURATION,
            shape: MapShape {
                map_type: ARRAY,
                key_size: 4,
                value_size: self.size,
                max_entries: 1,
                flags: RDONLY_PROG,
                value_type: section.id,
                ..MapShape::default()
            },
            inner: None,
            // It is in no section of the file, and no relocation names it.
            section: usize::MAX,
            offset: 0,
            data: Some(&[]),
            elements: Vec::new(),
            wrong: None,
        })
    }
}

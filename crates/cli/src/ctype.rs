//! Types and functions as C would declare them, in bpftool's words.

use bpfarray_core::btf::{Btf, Def, FuncProto};

/// Pointers to pointers to pointers, arrays and qualifiers that are followed.
const MAX_DEPTH: u32 = 16;

/// The name of a type, such as `const struct xdp_md *`.
pub(crate) fn type_name(btf: &Btf, id: u32) -> String {
    declared(btf, id, MAX_DEPTH)
}

/// The declaration of a function, such as `int count(struct xdp_md * ctx)`.
pub(crate) fn prototype(btf: &Btf, func: u32) -> Option<String> {
    let func = btf.get(func).ok()?;
    let Def::Func { proto, .. } = func.def else { return None };
    let Def::FuncProto(proto) = btf.get(proto).ok()?.def else { return None };
    let params = proto.params().map(|param| match (type_name(btf, param.ty), param.name) {
        (_, "") if param.ty == 0 => "...".to_owned(),
        (ty, "") => ty,
        (ty, name) => format!("{ty} {name}"),
    });
    let params = params.collect::<Vec<_>>().join(", ");
    Some(format!("{} {}({params})", type_name(btf, proto.ret), func.name))
}

fn declared(btf: &Btf, id: u32, depth: u32) -> String {
    let Some(depth) = depth.checked_sub(1) else { return "…".to_owned() };
    let Ok(ty) = btf.get(id) else { return "?".to_owned() };
    let of = |id| declared(btf, id, depth);
    match ty.def {
        Def::Void => "void".to_owned(),
        Def::Ptr(to) => format!("{} *", of(to)),
        Def::Array(array) => format!("{} [{}]", of(array.element), array.len),
        Def::Const(of_type) => format!("const {}", of(of_type)),
        Def::Volatile(of_type) => format!("volatile {}", of(of_type)),
        Def::Restrict(of_type) => format!("restrict {}", of(of_type)),
        Def::TypeTag(of_type) => of(of_type),
        Def::Struct(_) | Def::Fwd { is_union: false } => tagged("struct", ty.name),
        Def::Union(_) | Def::Fwd { is_union: true } => tagged("union", ty.name),
        Def::Enum(_) => tagged("enum", ty.name),
        Def::FuncProto(FuncProto { ret, .. }) => format!("{} ()", of(ret)),
        _ => ty.name.to_owned(),
    }
}

fn tagged(keyword: &str, name: &str) -> String {
    if name.is_empty() { format!("{keyword} {{…}}") } else { format!("{keyword} {name}") }
}

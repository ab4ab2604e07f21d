//! Functions by the server's own calling convention.

/// Tells the server how functions of ours are called that the bindings do not make.
macro_rules! version_1 {
    ($($finfo:ident),+) => {
        $(
            #[unsafe(no_mangle)]
            #[doc(hidden)]
            pub extern "C" fn $finfo() -> &'static pgrx::pg_sys::Pg_finfo_record {
                const V1: pgrx::pg_sys::Pg_finfo_record =
                    pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
                &V1
            }
        )+
    };
}
pub(crate) use version_1;

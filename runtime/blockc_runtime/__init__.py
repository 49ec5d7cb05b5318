"""The runtime of blockc: executes a plan. Imports only ``blockc.{diag,ir,plan,zoo}`` of the compiler's package."""

//! Tests on the hosted backend; see the end of the file for how a machine is made.

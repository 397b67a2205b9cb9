// Package computepb is the generated code of compute.proto, the contract of a
// compute driver. compute.proto is its documentation; package compute has the
// same as a Go interface.
package computepb

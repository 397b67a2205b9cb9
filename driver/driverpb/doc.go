// Package driverpb is the generated code of driver.proto, the service that every driver
// program implements. The comments in driver.proto are its documentation.
package driverpb

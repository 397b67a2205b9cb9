// Package driverpb is the generated code of driver.proto: what every driver
// program answers. driver.proto is its documentation.
package driverpb

// Package envtest gives tests the services that `make test` starts, or services of their own.
package envtest

import (
	"os"
	"testing"
)

// URL returns the value of the environment variable name, which is the URL of a private
// service. If the variable is not set, the test is skipped. If CI is set, the test fails instead, because
// in CI no test may be skipped.
func URL(t testing.TB, name string) string {
	t.Helper()
	url := os.Getenv(name)
	switch {
	case url != "":
	case os.Getenv("CI") != "":
		t.Fatalf("%s is not set, but CI is: in CI a missing service is a failure; run `make test`", name)
	default:
		t.Skipf("needs a service: run it with `make test`, or set %s", name)
	}
	return url
}

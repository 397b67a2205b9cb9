// Package envtest tells tests where the services are that `make test` starts.
package envtest

import (
	"os"
	"testing"
)

// URL returns the value of the environment variable name, the URL of a private
// service. Without it the test is skipped, or fails when CI is set: there,
// silence is not a pass.
func URL(t testing.TB, name string) string {
	t.Helper()
	url := os.Getenv(name)
	switch {
	case url != "":
	case os.Getenv("CI") != "":
		t.Fatalf("%s is not set, and CI is: a missing service is a failure there", name)
	default:
		t.Skipf("needs a service: run it with `make test`, or set %s", name)
	}
	return url
}

// Package envtest gives tests the services that `make test` starts, or services of their own.
package envtest

import (
	"net"
	"os"
	"strconv"
	"testing"

	"github.com/armature-go/armature/internal/testenv"
)

// FreeAddr returns an address of 127.0.0.1 on which no program listens, for a process that the test starts. The port is below the range of
// outgoing ports. So no outgoing connection can take it before the process listens.
func FreeAddr(t testing.TB) string {
	t.Helper()
	port, err := testenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// URL returns the value of the environment variable with the given name: the URL of a private
// service. If the variable is not set, the test is skipped. If CI is set, the test fails instead, because
// in CI no test may be skipped.
func URL(t testing.TB, name string) string {
	t.Helper()
	url := os.Getenv(name)
	switch {
	case url != "":
	case os.Getenv("CI") != "":
		t.Fatalf("%s is not set, but CI is: in CI a missing service is a failure; %s", name, remedy(name))
	default:
		t.Skipf("needs a service: %s", remedy(name))
	}
	return url
}

// remedy says how a test gets a service, in this project and in another project that uses its packages.
func remedy(name string) string {
	return "run it with `make test`, call testenv.Main in TestMain, or set " + name
}

//go:build race

package amqp_test

import (
	"os/exec"
	"testing"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
)

// TestConnectionLost starts the test of that name without the race detector, because watermill-amqp v3.0.2 itself has a
// data race when it loses a connection.
func TestConnectionLost(t *testing.T) {
	t.Parallel()
	envtest.URL(t, testenv.AMQPVar) // skips without a broker
	out, err := exec.CommandContext(t.Context(), "go", "test", "-run", "^TestConnectionLost", "-count", "1", ".").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

package main

import (
	"strings"
	"testing"
)

// TestHostName: a value of the option host is refused if the name of a queue cannot contain it.
func TestHostName(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"a b", "node\t1", "node.*", "dlq", "node-1.calls", strings.Repeat("h", 300)} {
		if text := complaints(t, "[DEFAULT]\nhost = "+host+"\n", "member", "list"); !strings.Contains(text, "nova.conf:2: [DEFAULT] host: ") {
			t.Errorf("host = %.20q: %s; want an error that names the option", host, text)
		}
	}
}

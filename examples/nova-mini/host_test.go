package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/config"
)

// TestHostName: a host name that cannot be part of a queue's name is refused when the options are read.
func TestHostName(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"a b", "node\t1", "node.*", "dlq", "node-1.calls", strings.Repeat("h", 300)} {
		f := &flags{config: config.Source{Env: []string{"OS_DEFAULT__HOST=" + host}}}
		if _, err := f.load(); !errors.Is(err, fault.Invalid) || !strings.Contains(fmt.Sprint(err), "[DEFAULT] host") {
			t.Errorf("host = %.20q: %v, want Invalid that names the option", host, err)
		}
	}
}

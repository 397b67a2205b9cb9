package main

import (
	"bytes"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/service/config"
)

// TestNovaConf: a file that was written for Nova counts for the options that nova-mini
// knows; each other one is named once. Without strict = false it is refused.
func TestNovaConf(t *testing.T) {
	t.Parallel()
	const file = "testdata/nova.conf"
	f := &flags{config: config.Source{Files: []string{file}, Env: []string{"OS_DEFAULT__STRICT=false"}}}
	var out bytes.Buffer
	src := f.source()
	src.Logger = slog.New(slog.NewTextHandler(&out, nil))
	c, err := config.Open[settings](src)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.Reload(t.Context()); err != nil {
			t.Error(err)
		}
	}
	o, err := f.load()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ got, want any }{
		{o.ComputeDriver, "libvirt"},
		{o.Listen, "10.0.0.11"},
		{o.StatePath, "/var/lib/nova"},
		{o.TransportURL, "rabbit://openstack:RABBIT_PASS@controller:5672/"},
		{o.Database.Connection, "mysql+pymysql://nova:NOVA_DBPASS@controller/nova?charset=utf8"},
		{o.Database.MaxPoolSize, 20},
		{o.CPURatio, 8.0},
		{o.ServiceDownTime, 75 * time.Second},
		{o.API.AuthStrategy, "keystone"},
		{o.Keystone.Password, "NOVA$PASS"},
		{strings.Join(o.Keystone.ServiceRoles, " "), "service admin"},
		{strings.Join(o.FilterScheduler.EnabledFilters, " "), "ComputeFilter ComputeCapabilitiesFilter ImagePropertiesFilter"},
		{o.FilterScheduler.RAMMultiplier, -1.0},
		{o.Rabbit.QuorumQueue, true},
		{o.Scheduler.MaxAttempts, 5},
	} {
		if tt.got != tt.want {
			t.Errorf("%v, want %v", tt.got, tt.want)
		}
	}
	// Every line that is not known is named once: sections that are not known as a whole.
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	ignored := 0
	for i, line := range strings.Split(string(raw), "\n") {
		ignored += strings.Count(out.String(), "ignored: "+file+":"+strconv.Itoa(i+1)+":")
		if strings.HasPrefix(line, "log_dir") && !strings.Contains(out.String(), "log_dir") {
			t.Errorf("%s is not named", line)
		}
	}
	if n := strings.Count(out.String(), "\n"); n != ignored || n < 20 {
		t.Errorf("%d warnings, of which %d name a line:\n%s", n, ignored, &out)
	}
	for _, secret := range []string{"RABBIT_PASS", "NOVA_DBPASS", "METADATA_SECRET"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("a secret was logged:\n%s", &out)
		}
	}

	f.config.Env = nil
	if _, err := f.load(); err == nil || !strings.Contains(err.Error(), file+":5: [DEFAULT] enabled_apis: no such option") {
		t.Errorf("strict: %v", err)
	}
}

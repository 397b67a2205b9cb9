package main

import (
	"net/http"
	"path/filepath"
	"testing"

	"github.com/armature-go/armature/internal/waittest"
)

// TestHungDriver: a call of the driver never returns. A server whose build hangs in this way can be deleted. A server on which a reboot
// hangs becomes ACTIVE again after a hard reboot.
func TestHungDriver(t *testing.T) { //nolint:paralleltest // the program sets the default logger
	dir := t.TempDir()
	o := &oneProcess{t, runAll(t, "--state-path", dir)}
	defer http.DefaultClient.CloseIdleConnections()
	create := func(metadata string) string {
		t.Helper()
		var made struct{ Server struct{ ID string } }
		if code := o.do("POST", "/servers", `{"server": {"name": "hangs", "flavorRef": "1", "imageRef": "cirros", "metadata": `+metadata+`}}`, &made); code != 202 {
			t.Fatal(code)
		}
		return made.Server.ID
	}
	remove := func(id string) {
		t.Helper()
		if code := o.do("DELETE", "/servers/"+id, "", nil); code != 204 {
			t.Errorf("delete: %d", code)
		}
		o.await(id, "")
	}
	hangs := func(method, id string) { // the driver counts its faults
		t.Helper()
		waittest.Until(t, "the driver to hang in "+method, func() bool {
			found, err := filepath.Glob(filepath.Join(dir, "instances", "*", "counts", method+"-"+id+"-*"))
			return err == nil && len(found) == 1
		})
	}
	built, rebooted := create(`{"fake:spawn": "hang 1"}`), create(`{"fake:reboot": "hang 1"}`)
	o.await(rebooted, "ACTIVE")
	reboot := func() {
		t.Helper()
		if code := o.do("POST", "/servers/"+rebooted+"/action", `{"reboot": {"type": "HARD"}}`, nil); code != 202 {
			t.Fatalf("reboot: %d", code)
		}
	}
	interrupted := create(`{"fake:reboot": "hang 1"}`)
	o.await(interrupted, "ACTIVE")
	for _, typ := range []string{"SOFT", "HARD"} { // the hard reboot interrupts the soft reboot
		if code := o.do("POST", "/servers/"+interrupted+"/action", `{"reboot": {"type": "`+typ+`"}}`, nil); code != 202 {
			t.Fatalf("%s reboot: %d", typ, code)
		}
		if typ == "SOFT" {
			hangs("reboot", interrupted)
		}
	}
	o.await(interrupted, "ACTIVE")
	remove(interrupted)
	reboot()
	o.await(rebooted, "HARD_REBOOT")
	hangs("reboot", rebooted)
	if code := o.do("POST", "/servers/"+rebooted+"/action", `{"os-resetState": {"state": "active"}}`, nil); code != 202 {
		t.Fatalf("reset: %d", code)
	}
	reboot() // the first call still hangs
	o.await(rebooted, "ACTIVE")
	remove(rebooted)
	hangs("spawn", built)
	o.await(built, "BUILD")
	remove(built)
}

package main

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

// TestSoftDelete: a deleted server can be restored within reclaim_instance_interval. After this time it is removed.
func TestSoftDelete(t *testing.T) { //nolint:paralleltest // the program sets the default logger
	conf := filepath.Join(t.TempDir(), "nova.conf")
	if err := os.WriteFile(conf, []byte("[DEFAULT]\nreclaim_instance_interval = 6\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := &oneProcess{t, runAll(t, "--config-file", conf)}
	defer http.DefaultClient.CloseIdleConnections()
	var made struct{ Server struct{ ID string } }
	if code := o.do("POST", "/servers", `{"server": {"name": "again", "flavorRef": "1", "imageRef": "cirros"}}`, &made); code != 202 {
		t.Fatal(code)
	}
	id := made.Server.ID
	o.await(id, "ACTIVE")
	remove := func() {
		t.Helper()
		if code := o.do("DELETE", "/servers/"+id, "", nil); code != 204 {
			t.Fatal(code)
		}
		o.await(id, "SOFT_DELETED")
		var list struct{ Servers []struct{ ID string } }
		if code := o.do("GET", "/servers", "", &list); code != 200 || len(list.Servers) != 0 {
			t.Errorf("the list: %d %v", code, list)
		}
	}
	remove()
	if code := o.do("POST", "/servers/"+id+"/action", `{"restore": null}`, nil); code != 202 {
		t.Fatalf("restore: %d", code)
	}
	o.await(id, "ACTIVE")
	remove()
	o.await(id, "")
}

package main

import (
	"net/http"
	"testing"
)

// TestGuestDies: on SQLite, in one process, a server whose guest dies becomes SHUTOFF.
func TestGuestDies(t *testing.T) { //nolint:paralleltest // the program sets the default logger
	o := &oneProcess{t, runAll(t)}
	defer http.DefaultClient.CloseIdleConnections()
	var made struct{ Server struct{ ID string } }
	if code := o.do("POST", "/servers", `{"server": {"name": "dies", "flavorRef": "1", "imageRef": "cirros", "metadata": {"fake:dies": "500ms"}}}`, &made); code != 202 {
		t.Fatal(code)
	}
	o.await(made.Server.ID, "SHUTOFF")
	var got struct {
		Server struct {
			Power int `json:"OS-EXT-STS:power_state"`
		}
	}
	if code := o.do("GET", "/servers/"+made.Server.ID, "", &got); code != 200 || got.Server.Power != 4 {
		t.Errorf("%d %+v", code, got)
	}
}

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"

	"github.com/armature-go/armature/cmd/armature/template/backup/backupdriver"
	"github.com/armature-go/armature/component/componenttest"
	"github.com/armature-go/armature/service/operation"
)

// send sends a request to the API, and reads the reply into out unless it is nil. It fails the test if the status is not the wanted one.
func send(t *testing.T, method, url string, body, out any, want int) {
	t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	if body == nil {
		r.Body, r.ContentLength = http.NoBody, 0
	} else {
		r.Header.Set("Content-Type", "application/json")
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var reply bytes.Buffer
	if _, err := reply.ReadFrom(res.Body); err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != want {
		t.Fatalf("%s %s: %d %s, want %d", method, url, res.StatusCode, &reply, want)
	}
	if out != nil {
		if err := json.Unmarshal(reply.Bytes(), out); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBackup: a backup is created, listed, shown and deleted, and wrong requests are refused.
func TestBackup(t *testing.T) {
	t.Parallel()
	d := backupdriver.NewMemory()
	c := componenttest.Start(t, newComponent(d), "max_size=10")
	var b Backup
	send(t, "POST", c.URL+"/v1/backups", newBackup{Name: "first", Size: 2}, &b, http.StatusAccepted)
	if op := c.Wait(b.ID); op.State != operation.Succeeded {
		t.Fatalf("%s: %s", op.State, op.Error)
	}
	send(t, "GET", c.URL+"/v1/backups/"+b.ID, nil, &b, http.StatusOK)
	if b.Status != available || b.Host == "" || b.Name != "first" {
		t.Errorf("%+v", b)
	}
	var page backupList
	for query, want := range map[string]int{"": 1, "?name=first": 1, "?name=other": 0, "?status=available": 1, "?status=error": 0, "?limit=0": 0} {
		if send(t, "GET", c.URL+"/v1/backups"+query, nil, &page, http.StatusOK); len(page.Backups) != want {
			t.Errorf("%s: %+v, want %d", query, page, want)
		}
	}
	send(t, "POST", c.URL+"/v1/backups", newBackup{Name: "too large", Size: 11}, nil, http.StatusBadRequest)
	send(t, "POST", c.URL+"/v1/backups", newBackup{Name: "", Size: 1}, nil, http.StatusBadRequest)
	send(t, "GET", c.URL+"/v1/backups/none", nil, nil, http.StatusNotFound)
	send(t, "GET", c.URL+"/v1/backups?colour=red", nil, nil, http.StatusBadRequest)
	send(t, "DELETE", c.URL+"/v1/backups/"+b.ID, nil, nil, http.StatusAccepted)
	if op := c.Wait(b.ID); op.State != operation.Succeeded {
		t.Fatalf("%s: %s", op.State, op.Error)
	}
	send(t, "GET", c.URL+"/v1/backups/"+b.ID, nil, nil, http.StatusNotFound)
	if ids, err := d.List(t.Context()); err != nil || len(ids) != 0 {
		t.Errorf("the driver still has %v, %v", ids, err)
	}
}

// TestKill: a process of each service is killed while backups are created. Each backup is still created, once.
func TestKill(t *testing.T) {
	t.Parallel()
	d := backupdriver.NewMemory()
	c := componenttest.Start(t, newComponent(d))
	var made []string
	for round, service := range []string{"worker", "conductor", "api"} {
		for i := range 5 {
			var b Backup
			send(t, "POST", c.URL+"/v1/backups", newBackup{Name: fmt.Sprint(round, i), Size: 1}, &b, http.StatusAccepted)
			made = append(made, b.ID)
		}
		c.Service(service).Kill()
		c.Service(service).Start()
	}
	for _, id := range made {
		if op := c.Wait(id); op.State != operation.Succeeded {
			t.Errorf("%s: %s: %s", id, op.State, op.Error)
		}
	}
	ids, err := d.List(t.Context())
	if slices.Sort(ids); err != nil || !slices.Equal(ids, slices.Sorted(slices.Values(made))) {
		t.Errorf("the driver has %v, want %v, %v", ids, made, err)
	}
}

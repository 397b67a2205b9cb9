package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/imagedata"
	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/images"
)

// testWrongContent: if the content does not match Glance's checksum, the server fails, and no file with this content stays on the host.
func (g *glanced) testWrongContent() {
	g.Helper()
	for _, wrong := range []string{"contenu", "conte", "content and more"} {
		image := g.image("ada", images.CreateOpts{Name: "changed"}, "content")
		g.proxy.set(func(r *http.Request) bool {
			return r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, image+"/file")
		}, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, wrong)
		})
		if says := g.becomes(g.server(image), "ERROR"); !strings.Contains(says, "the content does not have the checksum of the image service") {
			g.Errorf("%q: the fault of the server is %s", wrong, says)
		}
		g.proxy.set(nil, nil)
		if left, _ := filepath.Glob(filepath.Join(g.dir, "images", "node-1", image+"*")); len(left) > 0 {
			g.Errorf("%q: the host has %v", wrong, left)
		}
		g.becomes(g.server(image), "ACTIVE")
		g.content(image, "content")
	}
}

// testKilledDownload: a compute service is killed during a download. After its restart, it downloads the whole image again.
func (g *glanced) testKilledDownload() {
	g.Helper()
	want := strings.Repeat("content", 1000)
	image := g.image("ada", images.CreateOpts{Name: "large"}, want)
	began := make(chan bool, 10)
	g.proxy.set(func(r *http.Request) bool {
		return r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, image+"/file")
	}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(want)))
		_, _ = io.WriteString(w, want[:100])
		_ = http.NewResponseController(w).Flush()
		began <- true
		<-r.Context().Done()
	})
	id := g.server(image)
	g.await(began)
	g.procs["node-1"].Kill()
	if _, err := os.Stat(filepath.Join(g.dir, "images", "node-1", image+".raw")); err == nil {
		g.Error("the host has an incomplete file under the final name of the image")
	}
	g.proxy.set(nil, nil)
	g.start("compute", "node-1")
	g.becomes(id, "ACTIVE")
	g.content(image, want)
}

// await waits until a transfer has begun.
func (g *glanced) await(began <-chan bool) {
	g.Helper()
	select {
	case <-began:
	case <-time.After(60 * time.Second):
		g.Fatal("no transfer has begun")
	}
}

// testKilledUpload: an interrupted upload is repeated. The image becomes active only with its complete content.
func (g *glanced) testKilledUpload() {
	g.Helper()
	id := g.server(g.image("ada", images.CreateOpts{Name: "base"}, "base"))
	g.becomes(id, "ACTIVE")
	began := make(chan bool, 10)
	g.stallUploads(began)
	var made struct {
		ID string `json:"image_id"`
	}
	if err := json.Unmarshal([]byte(g.want(202, "", "ada", "2.45", "POST", "servers/"+id+"/action", `{"createImage": {"name": "cut"}}`)), &made); err != nil {
		g.Fatal(err)
	}
	g.await(began)
	g.poll("Glance to receive the upload", 10*time.Second, func() error {
		if is := g.status(made.ID); is != "saving" {
			return errors.New(is)
		}
		return nil
	})
	g.procs["node-1"].Kill()
	g.poll("Glance to drop the part", 30*time.Second, func() error {
		if is := g.status(made.ID); is != "queued" {
			return errors.New(is)
		}
		return nil
	})
	g.proxy.set(nil, nil)
	g.start("compute", "node-1")
	g.becomes(id, "ACTIVE")
	content, err := imagedata.Download(g.Context(), g.images["ada"], made.ID).Extract()
	if err != nil {
		g.Fatal(err)
	}
	if raw, err := io.ReadAll(content); err != nil || string(raw) != id {
		g.Errorf("the image has %q, %v; want the snapshot of %s", raw, err, id)
	}
	// If Glance refuses an upload, the action ends, and the image is removed.
	g.proxy.set(isUpload, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusRequestEntityTooLarge) })
	if err := json.Unmarshal([]byte(g.want(202, "", "ada", "2.45", "POST", "servers/"+id+"/action", `{"createImage": {"name": "refused"}}`)), &made); err != nil {
		g.Fatal(err)
	}
	g.becomes(id, "ACTIVE")
	g.proxy.set(nil, nil)
	g.gone("the image of the failed upload", made.ID)
	g.want(200, `"result":"Error"`, "root", "2.84", "GET", "servers/"+id+"/os-instance-actions/"+g.lastRequest(id), "")
	if left, _ := filepath.Glob(filepath.Join(g.dir, "images", "node-1", "snapshot-*")); len(left) > 0 {
		g.Errorf("the host has %v", left)
	}
}

// isUpload reports whether a request is the upload of an image.
func isUpload(r *http.Request) bool {
	return r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/file")
}

// stallUploads makes the proxy forward only the first bytes of each upload. Then the upload stalls, and the channel began receives a value.
func (g *glanced) stallUploads(began chan<- bool) {
	g.proxy.set(isUpload, func(w http.ResponseWriter, r *http.Request) {
		all, _ := io.ReadAll(r.Body) // net/http cancels the context of a lost connection only after the body is read
		r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(all[:10]), &ending{ctx: r.Context(), began: began}))
		g.proxy.forward(w, r)
	})
}

// testDeletedUpload: a server is deleted during the upload of its disk. The server and the image are removed soon, although the
// upload stalls.
func (g *glanced) testDeletedUpload() {
	g.Helper()
	base := g.image("ada", images.CreateOpts{Name: "base"}, "base")
	for name, body := range map[string]string{"late": `{"createImage": {"name": "late"}}`, "s-shelved": `{"shelve": null}`} {
		id := g.server(base)
		g.becomes(id, "ACTIVE")
		began := make(chan bool, 10)
		g.stallUploads(began)
		g.want(202, "", "ada", "2.1", "POST", "servers/"+id+"/action", body)
		g.await(began)
		var all struct{ Images []struct{ ID string } }
		if err := json.Unmarshal([]byte(g.want(200, name, "ada", "2.1", "GET", "images?server="+id, "")), &all); err != nil || len(all.Images) != 1 {
			g.Fatalf("%v, %v", all, err)
		}
		g.want(204, "", "ada", "2.1", "DELETE", "servers/"+id, "")
		g.gone("the image "+name, all.Images[0].ID)
		g.poll("the server to be gone", 60*time.Second, func() error {
			if code, body, _ := g.ask("ada", "2.1", "GET", "servers/"+id, ""); code != 404 {
				return errors.New(body)
			}
			return nil
		})
		g.proxy.set(nil, nil)
	}
	if left, _ := filepath.Glob(filepath.Join(g.dir, "images", "node-1", "snapshot-*")); len(left) > 0 {
		g.Errorf("the host has %v", left)
	}
}

// lastRequest returns the id of the request of the last action on a server.
func (g *glanced) lastRequest(id string) string {
	g.Helper()
	var list struct {
		Actions []struct {
			Request string `json:"request_id"`
		} `json:"instanceActions"`
	}
	body := g.want(200, "", "root", "2.84", "GET", "servers/"+id+"/os-instance-actions", "")
	if err := json.Unmarshal([]byte(body), &list); err != nil || len(list.Actions) == 0 {
		g.Fatalf("%s, %v", body, err)
	}
	return list.Actions[0].Request
}

package api_test

import (
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/api"
)

// samplesRoot is the folder of Nova's published samples. A tree without this folder beside it skips the tests that need them.
var samplesRoot = filepath.Join("..", "..", "..", "..", "shared", "nova-api", "samples")

// usedSamples has the samples that a test has compared with a reply, or has sent, by their paths in samplesRoot. Reading a sample is not enough.
var usedSamples, samplesByText, samplesByValue sync.Map

// parsedSample is a sample as a JSON object. The entries of samplesByValue keep the object, so that no other object gets its address.
type parsedSample struct {
	path  string
	value map[string]any
}

// readSampleFile reads a file of samplesRoot. If a test sends or compares the text, the sample is used.
func readSampleFile(file string) ([]byte, error) {
	raw, err := os.ReadFile(file)
	if err == nil {
		knowText(file, string(raw))
	}
	return raw, err
}

// knowText remembers a text that a test has made of a sample. Two samples may have the same text: then both are used when a test uses the text.
func knowText(file, text string) {
	if path, err := filepath.Rel(samplesRoot, file); err == nil {
		paths, _ := samplesByText.LoadOrStore(text, new(sync.Map))
		paths.(*sync.Map).Store(filepath.ToSlash(path), true) //nolint:forcetypeassert // the map has only such values
	}
}

// useText marks the samples with this text as used: a test sends the text, or compares a reply with it.
func useText(text string) {
	if paths, ok := samplesByText.Load(text); ok {
		paths.(*sync.Map).Range(func(path, _ any) bool { usedSamples.Store(path, true); return true }) //nolint:forcetypeassert // as above
	}
}

// knowValue remembers the object of a sample, for useValue.
func knowValue(file string, v any) {
	if o, ok := v.(map[string]any); ok {
		if path, err := filepath.Rel(samplesRoot, file); err == nil {
			samplesByValue.Store(reflect.ValueOf(o).Pointer(), parsedSample{filepath.ToSlash(path), o})
		}
	}
}

// useValue marks a sample as used, if the value is the object of a sample: a test compares a reply with it.
func useValue(v any) {
	if o, ok := v.(map[string]any); ok {
		if of, ok := samplesByValue.Load(reflect.ValueOf(o).Pointer()); ok {
			usedSamples.Store(of.(parsedSample).path, true) //nolint:forcetypeassert // the map has only such values
		}
	}
}

// notCompared has the samples that no test sends or compares, by a part of their paths, with the reason.
var notCompared = map[string]string{
	"os-aggregates/": absent, "os-assisted-volume-snapshots/": absent, "os-hosts/": absent, "os-migrations/": absent, "os-quota-class-sets/": absent,
	"os-quota-sets/": absent, "os-quota-sets-noop/": absent, "os-server-shares/": absent, "server-migrations/": absent, "os-evacuate/": "nova-mini has no action evacuate",
	"os-migrate-server/": "nova-mini has no actions migrate and os-migrateLive",

	"consoles/": gone, "os-agents/": gone, "os-cells/": gone, "os-certificates/": gone, "os-cloudpipe/": gone, "os-fixed-ips/": gone, "os-floating-ip-dns/": gone, "os-floating-ips-bulk/": gone, "os-fping/": gone,
	"os-networks-associate/": gone, "os-security-group-default-rules/": gone, "os-virtual-interfaces/": gone,

	"os-baremetal-nodes/": proxied, "os-floating-ip-pools/": proxied, "os-floating-ips/": proxied, "os-networks/": proxied, "os-snapshots/": proxied, "os-tenant-networks/": proxied, "os-volumes/": proxied,
	"os-security-groups/security-group-post-req": proxied, "os-security-groups/security-group-rules-post-re": proxied, "os-security-groups/security-groups-create-resp": proxied,

	"os-volume_attachments/":                                    "nova-mini has no volumes: TestServerParts has the empty list and the refusals",
	"os-hypervisors/hypervisors-uptime-resp":                    "no driver reports the uptime of its host: 501, see TestHypervisorVersions",
	"os-hypervisors/v2.28/hypervisors-uptime-resp":              "as above",
	"os-hypervisors/v2.53/hypervisors-uptime-resp":              "as above",
	"os-remote-consoles/get-rdp-console-post-resp":              "Nova has removed this type of console, see refusedSamples",
	"os-remote-consoles/get-spice-console-post-resp":            "nova-mini does not have this type of console, see refusedSamples",
	"os-remote-consoles/v2.8/create-mks-console-resp":           "as above",
	"os-remote-consoles/v2.99/create-spice-direct-console-resp": "as above",
	"os-services/v2.69/":                                        outage,
	"servers/v2.69/":                                            outage,
	"servers/v2.71/server-get-down-cell-resp":                   outage,
	"servers/v2.63/server-action-rebuild-resp":                  "signatures of images are not checked, see refusedSamples",
	"servers/v2.63/server-create-resp":                          "signatures of images are not checked, see refusedCreates",
	"servers/v2.66/server-create-resp":                          "as above",
	"servers/v2.32/server-create-resp":                          "volumes are not supported, see refusedCreates",
	"servers/v2.42/server-create-resp":                          "as above",
	"servers/v2.67/server-create-resp":                          "volumes are not supported, see refusedCreates",
	"servers/v2.90/server-create-resp":                          "Nova refuses the sample request, too, see refusedCreates",
	"servers/v2.94/server-create-resp":                          "as above",
}

// Reasons of notCompared.
const (
	absent  = "nova-mini does not have the resource, or refuses its operations; uncomparedSamples checks that the OpenAPI document has no success for it"
	gone    = "Nova has removed the operations: 410, see TestRemoved"
	proxied = "a proxy of Nova to another service, which nova-mini refuses: 501, see TestRemoved"
	outage  = "a reply while a cell is down; nova-mini has one database"
)

// TestMain fails if all tests were run and passed, but a sample was neither sent or compared nor is in notCompared.
func TestMain(m *testing.M) {
	code := m.Run()
	chosen := func(name string) bool { f := flag.Lookup(name); return f != nil && f.Value.String() != f.DefValue }
	if all := !chosen("test.run") && !chosen("test.skip") && !chosen("test.list") && !chosen("test.fuzz"); all && code == 0 {
		for _, wrong := range uncomparedSamples() {
			fmt.Fprintln(os.Stderr, wrong)
			code = 1
		}
	}
	os.Exit(code)
}

// uncomparedSamples returns what is wrong with notCompared: a line for each sample that is neither used nor in the list, for each entry without a
// sample, and for each entry whose samples were all used.
func uncomparedSamples() (wrong []string) {
	used := map[string]bool{}
	err := filepath.WalkDir(samplesRoot, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		path, err := filepath.Rel(samplesRoot, file)
		if err != nil {
			return err
		}
		path = filepath.ToSlash(path)
		if _, ok := usedSamples.Load(path); ok {
			return nil
		}
		found := false
		for part := range notCompared {
			if strings.HasPrefix(path, part) {
				found, used[part] = true, true
			}
		}
		if !found {
			wrong = append(wrong, "the sample "+path+" is sent or compared by no test, and is not in notCompared")
		}
		return nil
	})
	if os.IsNotExist(err) {
		return nil // the samples are not beside this tree
	}
	if err != nil {
		return []string{err.Error()}
	}
	doc, err := api.OpenAPI("2.1")
	if err != nil {
		return []string{err.Error()}
	}
	served := slices.DeleteFunc(slices.Collect(maps.Keys(dig(doc, "paths"))), func(path string) bool { return !succeeds(dig(doc, "paths", path)) })
	for _, part := range slices.Sorted(maps.Keys(notCompared)) {
		if notCompared[part] == absent && slices.ContainsFunc(served, func(path string) bool { return strings.Contains(path+"/", "/"+part) }) {
			wrong = append(wrong, "nova-mini has the resource "+part+": compare its samples")
		}
		if !used[part] {
			wrong = append(wrong, "notCompared has "+part+", but tests use all its samples, or it has none")
		}
	}
	return wrong
}

// succeeds reports whether an operation of a path of the OpenAPI document has a reply other than an error.
func succeeds(item map[string]any) bool {
	for method := range item {
		for status := range dig(item, method, "responses") {
			if strings.HasPrefix(status, "2") {
				return true
			}
		}
	}
	return false
}

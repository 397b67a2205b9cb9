package drivertest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// UpdateVar is the environment variable that makes [Contract] write its file.
const UpdateVar = "ARMATURE_UPDATE"

// Contract fails if what a .proto file promises is not what the file named golden
// says, which was committed when it was promised: no service, method, message,
// field or value of an enum goes or changes while programs that were built with it
// are in use, which is until the kind's protocol has a new version, and the .proto
// file a new package. What is added has to be added to golden, too: run with
// ARMATURE_UPDATE=1 it writes the file, unless something is broken.
func Contract(t testing.TB, golden string, file protoreflect.FileDescriptor) {
	t.Helper()
	now := promises(file)
	update := os.Getenv(UpdateVar) != ""
	raw, err := os.ReadFile(golden)
	if err != nil && (!update || !os.IsNotExist(err)) {
		t.Fatalf("the frozen contract of %s: %v; %s=1 writes it", file.Package(), err, UpdateVar)
	}
	var broken []string
	for line := range strings.Lines(string(raw)) {
		if line = strings.TrimSuffix(line, "\n"); !slices.Contains(now, line) {
			broken = append(broken, line)
		}
	}
	text := strings.Join(now, "\n") + "\n"
	switch {
	case len(broken) > 0:
		t.Fatalf("the contract of %s is broken; it promised\n%s", file.Package(), strings.Join(broken, "\n"))
	case text == string(raw):
	case update:
		if err := os.WriteFile(golden, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("the contract of %s has grown; run with %s=1 to freeze it in %s. It is now:\n%s", file.Package(), UpdateVar, golden, text)
	}
}

// promises are all that a client or a server of a file relies on, a line each.
func promises(file protoreflect.FileDescriptor) (out []string) {
	for i := range file.Services().Len() {
		s := file.Services().Get(i)
		for j := range s.Methods().Len() {
			m := s.Methods().Get(j)
			stream := map[bool]string{true: "stream ", false: ""}
			out = append(out, fmt.Sprintf("rpc %s(%s%s) returns (%s%s)", m.FullName(), stream[m.IsStreamingClient()], m.Input().FullName(), stream[m.IsStreamingServer()], m.Output().FullName()))
		}
	}
	var messages func(list protoreflect.MessageDescriptors)
	enums := func(list protoreflect.EnumDescriptors) {
		for i := range list.Len() {
			for j := range list.Get(i).Values().Len() {
				v := list.Get(i).Values().Get(j)
				out = append(out, fmt.Sprintf("enum %s %s = %d", list.Get(i).FullName(), v.Name(), v.Number()))
			}
		}
	}
	messages = func(list protoreflect.MessageDescriptors) {
		for i := range list.Len() {
			m := list.Get(i)
			out = append(out, "message "+string(m.FullName()))
			for j := range m.Fields().Len() {
				f := m.Fields().Get(j)
				kind := f.Kind().String()
				switch {
				case f.Message() != nil:
					kind = string(f.Message().FullName())
				case f.Enum() != nil:
					kind = string(f.Enum().FullName())
				}
				out = append(out, fmt.Sprintf("field %s %v %s = %d", f.FullName(), f.Cardinality(), kind, f.Number()))
			}
			enums(m.Enums())
			messages(m.Messages())
		}
	}
	messages(file.Messages())
	enums(file.Enums())
	slices.Sort(out)
	return out
}

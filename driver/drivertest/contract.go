package drivertest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/armature-go/armature/internal/goldentest"
)

// Contract fails the test if the contents of a .proto file differ from the committed list. The list is the file at path. While
// programs that were built with the .proto file are in use, no service, method, message, field or value of an enum may be removed or
// changed. Such programs are in use until the kind's protocol gets a new version, and the .proto file a new package. A part that was
// added to the .proto file must be added to the list: with ARMATURE_UPDATE=1 Contract writes the list, unless a part was
// removed or changed.
func Contract(t testing.TB, path string, file protoreflect.FileDescriptor) {
	t.Helper()
	now := contractLines(file)
	goldentest.Contract(t, string(file.Package()), path, strings.Join(now, "\n")+"\n", "; it promised", func(old string) (broken []string, err error) {
		for line := range strings.Lines(old) {
			if line = strings.TrimSuffix(line, "\n"); !slices.Contains(now, line) {
				broken = append(broken, line)
			}
		}
		return broken, nil
	})
}

// contractLines returns the parts of a .proto file on which clients and servers rely, one line for each.
func contractLines(file protoreflect.FileDescriptor) (out []string) {
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

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	deviceplugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const gpuResource = "nvidia.com/gpu"

// newGPUCommand is a device plugin whose devices do not exist: requests, quotas and scheduling are
// exercised for real, a container only gets the names of its devices in NVIDIA_VISIBLE_DEVICES.
func newGPUCommand() *cobra.Command {
	var count int
	command := &cobra.Command{Use: "gpus", SilenceUsage: true, RunE: func(*cobra.Command, []string) error { return runGPUs(count) }}
	command.Flags().IntVar(&count, "count", 4, "devices on this node")
	return command
}

type gpuPlugin struct {
	deviceplugin.UnimplementedDevicePluginServer
	devices []*deviceplugin.Device
}

// runGPUs serves until the kubelet is started anew: it knows no plugin then and has removed their
// sockets; the machine that runs this process starts it again.
func runGPUs(count int) error {
	if err := waitForKubelet(time.Minute); err != nil {
		return err
	}
	socket := filepath.Join(deviceplugin.DevicePluginPath, "dstj-gpus.sock")
	if err := serveGPUs(socket, count); err != nil {
		return err
	}
	if err := registerGPUs(filepath.Base(socket)); err != nil {
		return err
	}
	for {
		time.Sleep(500 * time.Millisecond)
		if _, err := os.Stat(socket); err != nil {
			return fmt.Errorf("the kubelet was restarted")
		}
	}
}

// waitForKubelet returns once the kubelet's socket is served: a file alone may be left from before.
func waitForKubelet(patience time.Duration) error {
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		connection, err := net.Dial("unix", deviceplugin.KubeletSocket)
		if err == nil {
			return connection.Close()
		}
		if time.Now().After(end) {
			return err
		}
	}
}

func serveGPUs(socket string, count int) error {
	if err := os.RemoveAll(socket); err != nil {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	plugin := &gpuPlugin{}
	for i := range count {
		plugin.devices = append(plugin.devices, &deviceplugin.Device{ID: fmt.Sprintf("gpu-%d", i), Health: deviceplugin.Healthy})
	}
	server := grpc.NewServer()
	deviceplugin.RegisterDevicePluginServer(server, plugin)
	go server.Serve(listener)
	return nil
}

func registerGPUs(endpoint string) error {
	connection, err := grpc.NewClient("unix://"+deviceplugin.KubeletSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	request := &deviceplugin.RegisterRequest{Version: deviceplugin.Version, Endpoint: endpoint, ResourceName: gpuResource}
	_, err = deviceplugin.NewRegistrationClient(connection).Register(ctx, request)
	return err
}

func (p *gpuPlugin) GetDevicePluginOptions(context.Context, *deviceplugin.Empty) (*deviceplugin.DevicePluginOptions, error) {
	return &deviceplugin.DevicePluginOptions{}, nil
}

func (p *gpuPlugin) ListAndWatch(_ *deviceplugin.Empty, stream deviceplugin.DevicePlugin_ListAndWatchServer) error {
	if err := stream.Send(&deviceplugin.ListAndWatchResponse{Devices: p.devices}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func (p *gpuPlugin) Allocate(_ context.Context, request *deviceplugin.AllocateRequest) (*deviceplugin.AllocateResponse, error) {
	response := &deviceplugin.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		visible := map[string]string{"NVIDIA_VISIBLE_DEVICES": strings.Join(container.DevicesIds, ",")}
		response.ContainerResponses = append(response.ContainerResponses, &deviceplugin.ContainerAllocateResponse{Envs: visible})
	}
	return response, nil
}
